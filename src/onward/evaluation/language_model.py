"""Onward's scoring engine as a model of lm-evaluation-harness: any of its log-likelihood tasks, at our speed."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import LM

from onward.errors import UserError
from onward.evaluation.harness import rolling_windows
from onward.model.score import Scorer, encode_requests
from onward.model.tokenizer import LoadedTokenizer, read_tokenizer

if TYPE_CHECKING:
    import torch
    from lm_eval.api.instance import Instance

_CHUNK = 4096
"""Requests scored at one time: neighbours share their prefixes, and a cache of lm-eval's is filled chunk by chunk."""


class OnwardLM(LM):  # type: ignore[misc]
    """A model for `lm_eval.simple_evaluate`, with the numbers of lm-eval's own `hf` model.

        from lm_eval import simple_evaluate
        from onward.evaluation.language_model import OnwardLM

        results = simple_evaluate(model=OnwardLM.load("onward/tiny"), tasks=["piqa", "lambada_openai"])
        print(results["results"])

    Tasks of type multiple choice, log-likelihood and rolling log-likelihood run; one that generates text raises
    UserError. model: a `PreTrainedModel` in evaluation mode. tokenizer: what `onward.model.tokenizer.read_tokenizer`
    reads of its folder. batch_tokens: tokens of a forward pass (None: by the device). maximum_tokens: longest input;
    None takes the model's context.
    """

    def __init__(
        self, model: Any, tokenizer: LoadedTokenizer, batch_tokens: int | None = None, maximum_tokens: int | None = None
    ) -> None:
        super().__init__()
        self._device = model.device
        self._model = model
        self._tokenizer = tokenizer
        self._scorer = Scorer(model, batch_tokens, maximum_tokens)

    @staticmethod
    def load(base: str | Path, dtype: "torch.dtype | None" = None, device: str = "cpu") -> "OnwardLM":
        """Open `onward/tiny`, a model folder or a Hub id; dtype None is float32. Raises UserError as a run does."""
        from onward.model.load import load_model
        from onward.model.source import resolve

        source = resolve(str(base))
        return OnwardLM(load_model(source, dtype, device), read_tokenizer(source.folder))

    def loglikelihood(self, requests: "list[Instance]", disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return (nats, greedy) of each (context, continuation); an empty context becomes the prefix token."""
        limit = self._scorer.limit
        answers: list[tuple[float, bool]] = []
        for start in range(0, len(requests), _CHUNK):
            chunk = requests[start : start + _CHUNK]
            pairs = [(str(context), str(continuation)) for context, continuation in (one.args for one in chunk)]
            encoded = encode_requests(self._tokenizer, pairs)
            for one, request in zip(chunk, encoded, strict=True):
                if not 0 < len(request.continuation) <= limit:
                    got, expected = f"{len(request.continuation)} tokens", f"1 to {limit}, the model's context"
                    raise UserError("a continuation cannot be scored", _place(one), got, expected)
            for one, scored in zip(chunk, self._scorer.score(encoded), strict=True):
                _check(one, scored.logprob)
                answers.append((scored.logprob, scored.greedy))
                self.cache_hook.add_partial("loglikelihood", one.args, answers[-1])
        return answers

    def loglikelihood_rolling(self, requests: "list[Instance]", disable_tqdm: bool = True) -> list[float]:
        """Return the nats of whole texts, each cut into windows of the model's context as lm-eval's `hf` cuts them."""
        windows = [rolling_windows(self._tokenizer, str(one.args[0]), self._scorer.limit) for one in requests]
        scored = iter(self._scorer.score([window for text in windows for window in text]))
        answers: list[float] = []
        for one, text in zip(requests, windows, strict=True):
            answers.append(math.fsum(next(scored).logprob for _ in text))
            _check(one, answers[-1])
            self.cache_hook.add_partial("loglikelihood_rolling", one.args, answers[-1])
        return answers

    def generate_until(self, requests: "list[Instance]", disable_tqdm: bool = True) -> list[str]:
        """Refuse: nothing here generates."""
        where = _place(requests[0]) if requests else "lm-eval"
        todo = "leave it out, or give lm-eval its own model: simple_evaluate(model='hf', model_args='pretrained=...')"
        expected = "multiple_choice, loglikelihood or loglikelihood_rolling"
        raise UserError(
            "this task needs generation; only log-likelihoods are scored", where, "generate_until", expected, todo
        )

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Refuse: a base model has no chat template."""
        todo = "call simple_evaluate without apply_chat_template"
        raise UserError("a base model is scored without a chat template", "apply_chat_template", todo=todo)

    @property
    def tokenizer_name(self) -> str:
        """Name under which lm-eval caches requests."""
        return f"onward-{self._tokenizer.fingerprint}"

    @property
    def max_length(self) -> int:
        """Tokens of the longest input."""
        return self._scorer.limit

    @property
    def eot_token_id(self) -> int:
        """Id of the token that ends a text."""
        return self._tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """Id of the token that stands before a text's first: BOS, else EOS."""
        return self._tokenizer.prefix_id

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm-eval notes about a model beside its results."""
        parameters = sum(parameter.numel() for parameter in self._model.parameters())
        return {
            "model_num_parameters": parameters,
            "model_dtype": str(self._model.dtype),
            "max_length": self._scorer.limit,
        }


def _place(one: "Instance") -> str:
    return f"{one.task_name or 'lm-eval request'}, document {one.doc_id}"


def _check(one: "Instance", nats: float) -> None:
    if not math.isfinite(nats):
        todo = "the model's weights are damaged or overflow; score an earlier checkpoint"
        raise UserError("the model's likelihoods are not numbers", _place(one), str(nats), todo=todo)
