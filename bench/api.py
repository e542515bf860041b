"""The contract between bench and its plugins.

A method file holds one `Fusion` or one `Strategy`; a data set file holds one `DataSet`. This module is all
that such a file needs to import beside torch, timm and `bench.layers`, and it holds nothing else.

The step order is part of the contract (see `bench.train`)::

    zero_grad -> model(batch.inputs) -> fusion.terms -> each strategy.terms, left to right -> probe terms
    -> backward -> unscale -> each strategy.grads, left to right -> clip (probes excluded) -> optimizer step
"""

from bench.contract.data import DataError, DataSet, DataSpec, EncoderSpec, Item, ModalitySpec, Sample
from bench.contract.flow import TASK_CAPABILITIES, Batch, Capability, Inputs, Kind, Output, TaskSpec, Tokens
from bench.contract.hyperparameters import Hyperparameter, Settings, setting
from bench.contract.methods import Derived, Encoder, Fusion, Model, Passes, Plugin, Run, Strategy
from bench.contract.records import Action, EpochRecord
from bench.contract.sites import AttentionSite, SiteMeans, SiteRecord, SiteSample, attention_imbalance

__all__ = [
    "TASK_CAPABILITIES",
    "Action",
    "AttentionSite",
    "Batch",
    "Capability",
    "DataError",
    "DataSet",
    "DataSpec",
    "Derived",
    "Encoder",
    "EncoderSpec",
    "EpochRecord",
    "Fusion",
    "Hyperparameter",
    "Inputs",
    "Item",
    "Kind",
    "ModalitySpec",
    "Model",
    "Output",
    "Passes",
    "Plugin",
    "Run",
    "Sample",
    "Settings",
    "SiteMeans",
    "SiteRecord",
    "SiteSample",
    "Strategy",
    "TaskSpec",
    "Tokens",
    "attention_imbalance",
    "setting",
]
