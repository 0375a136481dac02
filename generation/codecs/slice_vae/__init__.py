"""The Slice VAE, an autoencoder of our own. In: video. Out: codes, the reconstruction, and the loss.

network        encoder and decoder, in slices of time that join exactly
causal         layers that hand what the next slice needs on as a value
task           the loss of an autoencoder, with everything that judges it
perceptual     a distance of pictures in the features of another network
discriminator  networks that tell real video from reconstructed video

May import `codecs.dct` and `config`.
"""
