"""Make a larger video from any video file, with the second stage of a trained run.

Run it as

    python enhance_a_file.py VIDEO RUN OUT.mp4 "what the video shows"
"""

import sys

from generation import enhance

if __name__ == "__main__":
    video, run, out, prompt = sys.argv[1:]
    # The first 9 frames; without `frames` all of them. Without `size` it is the nearest of the training.
    made = enhance(video, run, out, prompt=prompt, frames=9)
    print(made)
