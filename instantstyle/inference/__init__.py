"""From a request to pictures with recipes."""
