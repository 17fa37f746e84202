"""data and evaluation: where prompts come from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlft.config.base import Section

KEYS_OF_ROWS = {  # of the data section, by the rows that they are of (rlft.config.algorithm.FROM_DATA)
    "examples": ("completion_column", "document_column", "train_on"),
    "pairs": ("chosen_column", "rejected_column", "unusable"),
    "labels": ("completion_column", "label_column", "unusable"),
    "steps": ("steps_column", "step_labels_column", "step_separator", "label_of", "unusable"),
    "tasks": (),
}


class SourceConfig(Section):
    """A source of data.mixture. A key that is left out is as it is under data."""

    path: str
    """As data.path."""
    name: str | None = None
    """In metrics. Empty: the file's name without its ending."""
    weight: float = Field(default=1.0, gt=0)
    """Its share of what is learned from, relative to the other sources': 3 beside 1 is three quarters."""
    split: str | None = None
    """As data.split."""
    prompt_column: str | None = None
    """As data.prompt_column."""
    completion_column: str | None = None
    """As data.completion_column."""
    document_column: str | None = None
    """As data.document_column."""
    chosen_column: str | None = None
    """As data.chosen_column."""
    rejected_column: str | None = None
    """As data.rejected_column."""
    label_column: str | None = None
    """As data.label_column."""
    system_prompt: str | None = None
    """As data.system_prompt."""
    apply_chat_template: bool | None = None
    """As data.apply_chat_template."""
    chat_template: str | None = None
    """As model.chat_template, for this source."""
    train_on: Literal["assistant", "last", "everything"] | None = None
    """As data.train_on."""
    too_long: Literal["error", "drop", "truncate"] | None = None
    """As data.too_long."""
    unusable: Literal["error", "drop"] | None = None
    """As data.unusable."""
    max_rows: int | None = Field(default=None, ge=1)
    """As data.max_rows."""

    @property
    def label(self) -> str:
        """What it is called."""
        return self.name if self.name is not None else self.path.rstrip("/").rpartition("/")[2].partition(".")[0]


class DataConfig(Section):
    """data: the prompts (and, for SFT, the completions) to train on."""

    path: str | None = None
    """JSONL, JSON or Parquet file, a folder saved by `datasets`, or the name of a data set on the Hub. May stay empty
    in a driver script that passes `dataset=`."""
    split: str = "train"
    """The split, for data sets that have several."""
    prompt_column: str | None = None
    """Column with the prompt (text or messages). Found by itself when it has one of the usual names."""
    completion_column: str | None = None
    """Column with the completion, for SFT and KTO. Found by itself when it has one of the usual names."""
    chosen_column: str = "chosen"
    """For pairs: column with the better completion (text, messages, or a whole conversation with the prompt in it)."""
    rejected_column: str = "rejected"
    """For pairs: column with the worse completion, in the same form."""
    label_column: str = "label"
    """For KTO: column that says whether the completion is good (true or false, 1 or 0)."""
    steps_column: str = "completions"
    """For `process_reward`: column with a list of texts, the steps of a completion."""
    step_labels_column: str = "labels"
    """For `process_reward`: column with a list as long: whether each step is good (true, false, or from 0 to 1)."""
    step_separator: str = Field(default="\n", min_length=1)
    """For `process_reward`: what stands between two steps."""
    label_of: Literal["all", "last"] = "all"
    """For `process_reward`: learn the label of every step, or of each row's last alone. Held-out rows are measured at
    every step."""
    document_column: str | None = None
    """Column with whole texts, for continued pretraining (`sft`): all of each is learned, in pieces that fit the window
    where it is longer. Found by itself when it is `text` and no column looks like a prompt."""
    system_prompt: str | None = None
    """Put in front of each conversation. Makes plain text prompts into conversations."""
    apply_chat_template: bool | None = None
    """Render prompts with the tokenizer's chat template. Empty: do so for messages, not for plain text."""
    train_on: Literal["assistant", "last", "everything"] = "assistant"
    """For SFT, what is learned: every answer of a conversation, its last alone, or all tokens, the prompt's too. Of
    plain text, `assistant` and `last` are the completion."""
    too_long: Literal["error", "drop", "truncate"] = "error"
    """What to do with a prompt that does not fit the model's window with max_new_tokens behind it, and with a row of
    what learns from data that does not fit the window: stop, leave it out, or (SFT) cut the completion where the window
    ends."""
    unusable: Literal["error", "drop"] = "error"
    """What to do with rows that teach nothing: a pair whose two completions are the same, an empty completion of a pair
    or with a label, a step with the separator inside."""
    max_rows: int | None = Field(default=None, ge=1)
    """Use only the first rows."""
    streaming: bool = False
    """Read rows from the file when they are needed instead of holding all of them, for data larger than the memory, in
    the same order. A row that cannot be used then stops the run when it is met; with `too_long: drop` the next one in
    the file that fits stands in for one that does not. For JSONL, Parquet and what `datasets` saved."""
    shuffle: bool = True
    """A new order each epoch, a function of run.seed; otherwise the order of the file."""
    mixture: list[SourceConfig] = []
    """Several sources instead of data.path, learned from in fixed proportions: `[{path: a.jsonl, weight: 3}, {path:
    b.jsonl}]`. Each has its own keys where it has any, and its own epochs."""
    mixture_temperature: float | None = Field(default=None, gt=0)
    """Shares of the sources from their sizes n, as n ** (1 / temperature), instead of weights: 1 is in proportion to
    the sizes, more is more even."""


TextMetric = Literal["exact_match", "f1", "rouge1", "rouge2", "rougeL", "bleu"]


class EvaluationConfig(Section):
    """evaluation: accuracy and pass@k on held-out prompts, with the run's generator and rewards; for what learns from
    data, likelihood (`sft`) or accuracy (pairs) on held-out rows."""

    path: str | None = None
    """Held-out file, read like data.path. Empty: no evaluation."""
    source_column: str | None = None
    """Column that says where a row comes from: accuracy is told for each value of it too."""
    max_rows: int | None = Field(default=200, ge=1)
    """Use only the first rows."""
    every: int = Field(default=0, ge=0)
    """Evaluate every so many steps; 0: only before the first and after the last step."""
    samples_per_prompt: int = Field(default=1, ge=1)
    """Completions per prompt, the largest k of pass@k; 2, 4, 8 ... below it are reported too. More than 1 needs a
    temperature above 0."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature; 0 takes the most likely token."""
    pass_threshold: float = 1.0
    """A completion passes when its reward is at least this."""
    metrics: list[TextMetric] = []
    """Compare completions with reference_column too. `exact_match` and `f1` (of words): without case, punctuation and
    a, an, the, as in SQuAD. `rouge1`, `rouge2`, `rougeL`: F-measures. `bleu`: of all completions together, 0 to 100.
    ROUGE and BLEU need `pip install 'rlft[eval]'`."""
    reference_column: str | None = None
    """For metrics: the column with the right text, or a list of right texts of which the best counts."""

    def is_due(self, step: int, steps: int) -> bool:
        """Whether to evaluate after so many of `steps` steps."""
        return step >= steps or (self.every > 0 and step % self.every == 0)
