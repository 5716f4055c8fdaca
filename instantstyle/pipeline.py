"""What `custom_pipeline="instantstyle"` finds in a checkout."""

from instantstyle.core import StableDiffusionXLInstantStylePipeline as StableDiffusionXLInstantStylePipeline
