"""LongBench's metrics, value for value (`THUDM/LongBench`: `metrics.py`, `eval.py`).

Every metric takes a prediction, one reference and the class names (used by classification only) and returns 0 to 1.
"""

from __future__ import annotations

import logging
import re
import string
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import platformdirs

CHINESE_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】"
    "〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
_ENGLISH_MARKS = str.maketrans("", "", string.punctuation)
_ALL_MARKS = str.maketrans("", "", string.punctuation + CHINESE_PUNCTUATION)


class Metric(Protocol):
    """Scores one prediction against one reference, 0 to 1."""

    def __call__(self, prediction: str, reference: str, classes: Sequence[str]) -> float: ...


def first_line(prediction: str) -> str:
    """What is scored on the few-shot tasks: a model that goes on with a further example is not punished for it."""
    return prediction.lstrip("\n").split("\n")[0]


def f1(prediction: str, reference: str, classes: Sequence[str] = ()) -> float:
    """F1 of the two bags of English words; case, punctuation and articles do not count."""
    return _bag_f1(_english_words(prediction), _english_words(reference))


def f1_zh(prediction: str, reference: str, classes: Sequence[str] = ()) -> float:
    """F1 of the two bags of jieba words; case, punctuation and blanks do not count."""
    return _bag_f1(_chinese_words(prediction), _chinese_words(reference))


def rouge_l(prediction: str, reference: str, classes: Sequence[str] = ()) -> float:
    """The `rouge` package's summary-level ROUGE-L F, which works on sets of words; 0 where a text is empty."""
    return rouge_l_parts(prediction, reference)["f"]


def rouge_l_zh(prediction: str, reference: str, classes: Sequence[str] = ()) -> float:
    """ROUGE-L over jieba words. The full stop "。" does not split sentences there, only "." does."""
    return rouge_l(" ".join(_jieba().lcut(prediction)), " ".join(_jieba().lcut(reference)))


def rouge_l_parts(prediction: str, reference: str) -> dict[str, float]:
    """Recall `r`, precision `p` and `f` of ROUGE-L."""
    with _recursion_room(len(prediction.split()) + len(reference.split())):
        try:
            scores: dict[str, float] = _rouge().get_scores([prediction], [reference])[0]["rouge-l"]
        except ValueError:  # how the package answers a text without a sentence
            return {"r": 0.0, "p": 0.0, "f": 0.0}
    return scores


def classification(
    prediction: str, reference: str, classes: Sequence[str] = (), *, released_loop: bool = False
) -> float:
    """1/|S| if the true class is in S, the classes named in the output without those contained in the true one's name.

    The released code deletes from the list it walks over, so of two neighbouring names to delete it keeps the second;
    `released_loop` does the same.
    """
    named = [name for name in classes if name in prediction]
    if released_loop:
        for name in named:
            if _part_of(name, reference):
                named.remove(name)
    else:
        named = [name for name in named if not _part_of(name, reference)]
    return 1.0 / len(named) if reference in named else 0.0


def count(prediction: str, reference: str, classes: Sequence[str] = ()) -> float:
    """Share of the output's integers that equal the reference; 0 where there is none."""
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(reference.strip()) / len(numbers) if numbers else 0.0


def retrieval(prediction: str, reference: str, classes: Sequence[str] = ()) -> float:
    """`count` for a reference that names a paragraph: "Paragraph 3" or "段落3"."""
    named = re.search(r"(?:Paragraph |段落)(\d+)", reference)
    return count(prediction, named[1]) if named else 0.0


def edit_similarity(prediction: str, reference: str, classes: Sequence[str] = ()) -> float:
    """Similarity of the first line that is neither comment nor fence, in hundredths, as `fuzzywuzzy.fuzz.ratio` has it.

    fuzzywuzzy's own fallback (difflib) is fixed here; python-Levenshtein would give slightly different values.
    """
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return round(100 * SequenceMatcher(None, line, reference).ratio()) / 100


METRICS: dict[str, Metric] = {
    "f1": f1,
    "f1_zh": f1_zh,
    "rouge_l": rouge_l,
    "rouge_l_zh": rouge_l_zh,
    "classification": classification,
    "count": count,
    "retrieval": retrieval,
    "edit_similarity": edit_similarity,
}


def _part_of(name: str, reference: str) -> bool:
    return name in reference and name != reference


def _english_words(text: str) -> list[str]:
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_ENGLISH_MARKS)).split()


def _chinese_words(text: str) -> list[str]:
    words = ("".join(word.lower().translate(_ALL_MARKS).split()) for word in _jieba().lcut(text))
    return [word for word in words if word]


def _bag_f1(predicted: list[str], expected: list[str]) -> float:
    common = sum((Counter(predicted) & Counter(expected)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(expected)
    return 2 * precision * recall / (precision + recall)


@contextmanager
def _recursion_room(words: int) -> Iterator[None]:
    """The package walks back through its table by recursion, one level a word; long texts need a deeper stack."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + words)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


@cache
def _rouge() -> Any:
    from rouge import Rouge

    return Rouge(metrics=["rouge-l"])


@cache
def _jieba() -> Any:
    """A tokenizer of our own: quiet, and with its word table cached in the user's directory instead of a shared /tmp.

    Where that directory cannot be written, jieba builds the table anew in every process (about a second).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes and pkg_resources, inside jieba
        import jieba
    jieba.setLogLevel(logging.CRITICAL)
    tokenizer = jieba.Tokenizer()
    tokenizer.tmp_dir = str(platformdirs.user_cache_path("inference-suite"))
    with suppress(OSError):
        Path(tokenizer.tmp_dir).mkdir(parents=True, exist_ok=True)
    return tokenizer
