"""Configuration of DPBERT: BERT's, and the planner's under the one key `dpbert`."""

from transformers import BertConfig


class DPBertConfig(BertConfig):
    """BERT's configuration; `dpbert` holds `planner`, `calibration`, `default_budget`.

    The model type stays `bert`, so that the same folder is a plain BERT to whoever wants one.
    """

    def __init__(self, dpbert: dict | None = None, **kwargs):
        super().__init__(**kwargs)
        self.dpbert = dpbert
