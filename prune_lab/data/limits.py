"""What has room in memory, so that too much is refused before the work and not in the middle of it."""

from prune_lab.errors import BadInput
from prune_lab.utils.memory import available_memory, gigabytes

BYTES_PER_CHARACTER = 100
"""What a fast tokenizer takes for each character of a text, at least.

Measured are 510 bytes for each token of a byte-level BPE, whatever the length of the text: 174 a character with the
shipped vocabularies (2.96 characters a token), and so 100 to 130 with those of 50,000 words (4 to 5).
"""

BYTES_PER_SAMPLE = 150
"""What Python's objects take for each sample while it is drawn, besides its ids."""


def check_room(samples: int, seqlen: int) -> None:
    """Checks that the calibration samples have room in memory, before any of them is drawn.

    Raises:
        BadInput: their ids alone, two copies of 8 bytes each, would take more than there is.
    """
    available, needed = available_memory(), samples * (16 * seqlen + BYTES_PER_SAMPLE)
    if available is not None and needed > available:
        raise BadInput(
            f"data.samples={samples} of data.seqlen={seqlen} tokens take {gigabytes(needed)} of memory as ids alone, "
            f"and {gigabytes(available)} are available; the papers use 128 samples of 2048 tokens"
        )


def check_length(characters: int, what: str) -> None:
    """Checks that a text can be tokenised in memory; it is tokenised as one, as the papers do.

    Raises:
        BadInput: it is too long.
    """
    available, needed = available_memory(), BYTES_PER_CHARACTER * characters
    if available is not None and needed > available:
        raise BadInput(
            f"{what}: the text has {characters:,} characters; to tokenise it takes about {gigabytes(needed)} of "
            f"memory, and {gigabytes(available)} are available; give a shorter text, or the first part of it"
        )
