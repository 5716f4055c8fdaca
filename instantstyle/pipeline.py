"""What `custom_pipeline="instantstyle"` finds in a checkout."""

from pipeline_instantstyle import StableDiffusionXLInstantStylePipeline as StableDiffusionXLInstantStylePipeline
