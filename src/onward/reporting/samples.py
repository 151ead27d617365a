"""What the report and the console say of sampled documents."""

from onward.analysis.wording import percent
from onward.corpus.samples import DISTINCT, LONG_NGRAM, Samples


def sample_rows(samples: Samples) -> list[tuple[str, str, str]]:
    """Return (what, of the samples, of other text of the corpus measured over as much) as words and numbers."""
    whole, kept = samples.sampled, samples.kept
    rows = [
        ("kept, of those sampled", f"{kept:,} of {whole:,} ({percent(kept / max(1, whole))})", ""),
        ("tokens: median, mean", f"{samples.median_tokens:,.0f}, {samples.mean_tokens:,.1f}", ""),
        ("ended by the model", percent(samples.by_model), ""),
        ("nats per token under the base", f"{samples.nats:.4f} ({samples.bits_per_byte:.4f} bits per byte)", ""),
        ("its entropy, nats per token", f"{samples.entropy:.4f}", ""),
    ]
    texts = [samples.text] if samples.other is None else [samples.text, samples.other]
    measured = [("words looked at", [f"{text.words:,}" for text in texts])]
    measured += [
        (f"distinct {n}-grams of words", [percent(text.distinct[place]) for text in texts])
        for place, n in enumerate(DISTINCT)
    ]
    measured.append((f"repeated {LONG_NGRAM}-grams", [percent(text.repeated) for text in texts]))
    measured.append(("bytes per compressed byte (zstd)", [f"{text.compression:.2f}" for text in texts]))
    return rows + [(name, values[0], values[1] if len(values) > 1 else "") for name, values in measured]
