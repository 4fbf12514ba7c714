"""Class names of published data sets, in the order of their integer labels."""

FER2013 = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""Order of the challenge: `emotion` 0 to 6 of fer2013.csv."""

FERPLUS = ("neutral", "happy", "surprise", "sad", "angry", "disgust", "fear", "contempt")
"""Order of the first eight vote columns of fer2013new.csv."""

AFFECTNET = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "angry", "contempt")
"""Order of the publishers: `expression` 0 to 7; their "anger" is "angry" here, as in the other data sets."""
