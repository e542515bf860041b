"""CMU-MOSEI: sentiment of 22,856 utterances in YouTube monologues, as text, visual and audio features."""

from __future__ import annotations

from bench.data.sentiment import SentimentSet


class CMUMOSEI(SentimentSet):
    """Zadeh et al., ACL 2018: 16,326 / 1,871 / 4,659 utterances in the standard split, which separates videos.

    MultiBench's aligned file has GloVe words, Facet and COVAREP features on 50 steps and needs no settings. Others
    do, such as `text=50x768` for MMSA's aligned_50.pkl; the error on reading names the shapes that a file has.
    RollingQ's table shows visual rows and none for audio, so its pair is probably `modalities=text|visual`.
    """

    title = "CMU-MOSEI"
    source = "github.com/pliang279/MultiBench (mosei_senti_data.pkl, mosei_raw.pkl) or github.com/thuiar/MMSA"
    licence = "features for research; the videos belong to their authors"
    known_faults = (
        "COVAREP features hold infinities: they become 0 and are counted per sample as nonfinite_audio",
        "MultiBench leaves out utterances without text; they are kept here, with no valid step",
        "papers differ in what the classes are and whether a sentiment of 0 counts in two classes",
    )
    folder = "cmu_mosei"
    files = (
        "mosei_senti_data.pkl",
        "mosei_senti_data_noalign.pkl",
        "mosei_raw.pkl",
        "aligned_50.pkl",
        "unaligned_50.pkl",
    )
    where = "fetch one from the folder that the README of MultiBench or of MMSA links to"
