"""The mathematics of both stages. In: latents, token states and a network. Out: losses and sampled latents.

diffusion   the schedule with zero terminal SNR, v-prediction, and the solver of Stage I
flow        straight paths between latents, times, and the Euler solver
guidance    classifier-free guidance: two predictions of the network, and their combination
degrade     how a sharp clip becomes the start of Stage II: in pixels, then in latents
stage1      text to small latents: training times, loss, sampler
stage2      small latents to large ones: noise steps, loss, sampler

This room may import `models` (the call of the network), `text` (captions as one batch) and the modules
below the rooms.
"""
