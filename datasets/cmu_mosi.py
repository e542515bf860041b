"""CMU-MOSI: sentiment of 2,199 utterances in 93 YouTube monologues, as text, visual and audio features."""

from __future__ import annotations

from bench.data.sentiment import SentimentSet


class CMUMOSI(SentimentSet):
    """Zadeh et al., IEEE Intelligent Systems 2016: 1,284 / 229 / 686 utterances in the standard split.

    The settings are those of cmu_mosei; MMSA's aligned file needs `text=50x768:visual=50x20:audio=50x5`.
    """

    title = "CMU-MOSI"
    source = "github.com/pliang279/MultiBench (mosi_data.pkl, mosi_raw.pkl) or github.com/thuiar/MMSA"
    licence = "features for research; the videos belong to their authors"
    known_faults = (
        "686 test utterances: one is 0.15 points, and seeds differ by more than most published gaps",
        "papers differ in what the classes are and whether a sentiment of 0 counts in two classes",
    )
    folder = "cmu_mosi"
    files = ("mosi_data.pkl", "mosi_data_noalign.pkl", "mosi_raw.pkl", "aligned_50.pkl", "unaligned_50.pkl")
    where = "fetch one from the folder that the README of MultiBench or of MMSA links to"
