"""Checkpoints as their makers published them. In: a `.pt` file of CogVideoX or FlashVideo. Out: folders that
`transformer.pretrained` and `codec.model` name.

convert     recognises a checkpoint, and writes it anew, one tensor at a time
keys        which tensors of the checkpoint each tensor of diffusers comes from

May import `codecs`, `models` and what stands below the rooms. No room imports `published`.
"""
