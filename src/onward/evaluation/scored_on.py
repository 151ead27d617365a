"""What the scores in a folder are of, so that another model can be scored on the same."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from onward.artifact import write_json
from onward.errors import UserError
from onward.recipe import Evaluation
from onward.recipe.sections import as_path

_FILE = "scored_on.json"


@dataclass(frozen=True)
class ScoredOn:
    """Tasks and text of an evaluation. held_out: the artifact of each text by its name; cloze: of made questions."""

    evaluation: Evaluation
    held_out: Mapping[str, Path]
    cloze: Path | None

    @classmethod
    def of(cls, evaluation: Evaluation, held_out: Mapping[str, Path], cloze: Path | None) -> Self:
        """Put them together with absolute paths: the scores may be read from elsewhere."""
        data = None if evaluation.data is None else str(as_path(evaluation.data).absolute())
        places = {name: folder.absolute() for name, folder in held_out.items()}
        return cls(evaluation.model_copy(update={"data": data}), places, cloze and cloze.absolute())

    def write(self, folder: Path) -> None:
        """Write it into the folder of the scores."""
        evaluation = self.evaluation.model_dump(mode="json")
        write_json(folder / _FILE, {"evaluation": evaluation, "held_out": self.held_out, "cloze": self.cloze})

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read it again; None where there is none, which scores of an earlier version have not."""
        try:
            content = json.loads((folder / _FILE).read_bytes())
            evaluation = Evaluation.model_validate(content["evaluation"])
            held_out = {name: Path(place) for name, place in content["held_out"].items()}
            return cls(evaluation, held_out, None if content["cloze"] is None else Path(content["cloze"]))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, LookupError) as error:
            todo = "say with options what to score (--tasks, --text), or score these models anew"
            raise UserError(
                "what these scores are of cannot be read", str(folder / _FILE), str(error)[:200], todo=todo
            ) from error
