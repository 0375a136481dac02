"""The Slice VAE, the autoencoder of this project. In: video. Out: codes, the reconstruction, and the loss.

network        encoder and decoder, in slices of time that join exactly
causal         layers that return the data for the next slice as a value
task           the loss of an autoencoder, with all networks that judge the reconstruction
perceptual     a distance of pictures in the features of another network
discriminator  networks that distinguish real video from reconstructed video

This room may import `codecs.dct` and `config`.
"""
