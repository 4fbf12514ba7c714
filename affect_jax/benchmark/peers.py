"""Run the face readers of other packages over a video, under a Python interpreter that has these packages.

Imports nothing of affect_jax. `PYTHON peers.py deface VIDEO` prints "ready"; then, for each line on standard input, it
passes over the video once and prints "done". `PYTHON peers.py yunet VIDEO FILE` needs the ONNX file of the network.
"""

import sys

import cv2


def deface():
    """Return CenterFace of the package deface: frame -> boxes."""
    from deface.centerface import CenterFace

    network = CenterFace(backend="onnxrt")  # "auto" would use OpenCV, which is slower, without onnxruntime
    return lambda frame: network(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), threshold=0.2)


def fer():
    """Return OpenCV's cascade and the network of the package fer: frame -> boxes and expressions."""
    import warnings

    warnings.simplefilter("ignore")
    from fer.fer import FER

    return FER().detect_emotions


def yunet(file: str):
    """Return YuNet, which OpenCV runs: frame -> boxes."""
    network = cv2.FaceDetectorYN.create(file, "", (320, 320), 0.6, 0.45, 5000)

    def find(frame):
        network.setInputSize(frame.shape[1::-1])
        return network.detect(frame)

    return find


READERS = {"deface": deface, "fer": fer, "yunet": yunet}


def main(name: str, video: str, *arguments: str) -> None:
    """Pass over the video for each line on standard input, until it ends."""
    read_faces = READERS[name](*arguments)
    print("ready", flush=True)
    for _ in sys.stdin:
        capture = cv2.VideoCapture(video)
        while (frame := capture.read())[0]:
            read_faces(frame[1])
        print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
