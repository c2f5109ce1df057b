"""Configuration of DPBERT: the encoder's, and the planner's under the one key `dpbert`."""

from transformers import BertConfig as EncoderConfig


class DPBertConfig(EncoderConfig):
    """The encoder's configuration; `dpbert` holds `planner`, `calibration`, `default_budget`.

    The model type stays the encoder's, so that the same folder is a plain one to whoever wants it.
    """

    def __init__(self, dpbert: dict | None = None, **kwargs):
        super().__init__(**kwargs)
        self.dpbert = dpbert
