"""The stages of a picture, in the order it runs through them.

| stage | takes | gives |
|---|---|---|
| `text.TextEncoder` | prompts and negative prompts | `Prompts` |
| `image_prompt.ImagePromptEncoder` | pictures in the place of words | their vectors, for `Prompts` |
| `latent.LatentEncoder` | pictures | stage C's latents, to start from or to keep |
| `control.ControlEncoder` | control images | ControlNets' maps |
| `stage_c.TwoBranchSampler` | `Prompts`, and for each pass `Given` | `LowPass`, then `StageCLatents` |
| `stage_b.StageBSampler` | the pooled text, stage C's latent | stage A's latent |
| `pixels.TiledDecoder` | stage A's latent | pixels |
| `pixels.PreviewDecoder` | stage C's latent | pixels, in place of the last two |

Each owns its networks, their variables and its programs; `pipeline.Cascade` passes arrays between them.
"""
