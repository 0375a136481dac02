"""Conversion of published checkpoints. In: a `.pt` file of CogVideoX or FlashVideo. Out: folders that
`transformer.pretrained` and `codec.model` name.

convert     recognises a checkpoint, and writes it in the layout of diffusers, one tensor at a time
keys        which tensors of the checkpoint each tensor of diffusers comes from

This room may import `codecs`, `models` and the modules below the rooms. No room imports `published`.
"""
