"""What the remedies against forgetting change about what a step holds, counted from shape and recipe alone."""

from dataclasses import dataclass

from onward.errors import UserError
from onward.model.shape import ModelShape
from onward.recipe import Forgetting

FISHER_BYTES = 4
"""Of the Fisher information on disk, for each of the base's weights: fp32."""


@dataclass(frozen=True)
class Parts:
    """Parameters by what becomes of them in training.

    trained: with gradients and moments, adapters included; trained_inside: those of them that are no embedding.
    frozen: as the base has them. trains_head: whether the output embeddings are trained. passive_blocks: blocks at the
    bottom that no gradient reaches. base_copies: how often the base's trained weights are kept in fp32, the Fisher
    information counted as one. has_reference: another copy of the base is computed beside the model; with adapters the
    model serves, without them. adapter_width: what a block's adapters leave for the backward pass at each position, in
    numbers: the products of their first factors.
    """

    trained: int
    trained_inside: int
    frozen: int
    trains_head: bool
    passive_blocks: int
    base_copies: int
    has_reference: bool
    adapter_width: int = 0


def parts_of(shape: ModelShape, forgetting: Forgetting | None) -> Parts:
    """Count the parameters of a model by what the recipe does to them; None: all are trained.

    Raises UserError when more blocks are to be frozen than there are, or nothing but a norm is left.
    """
    if forgetting is None:
        return Parts(shape.parameters, shape.block_parameters, 0, True, 0, 0, False)
    blocks = blocks_frozen(forgetting, shape.layers, tied=shape.tied)
    keeps_embeddings = forgetting.freeze is not None and forgetting.freeze.embeddings
    is_weighed = forgetting.weighed is not None
    copies = int(is_weighed or bool(forgetting.l2_sp)) + int(is_weighed)
    if forgetting.lora is not None:
        rank, (matrices, ends) = forgetting.lora.rank, _matrices(shape)
        adapters = (shape.layers - blocks) * rank * ends
        return Parts(adapters, adapters, shape.parameters, False, blocks, 0, False, rank * matrices)
    body = shape.block_parameters - shape.position_parameters
    inside = body - blocks * (body // shape.layers) + (0 if keeps_embeddings else shape.position_parameters)
    kept = shape.vocabulary * shape.hidden if keeps_embeddings else 0
    trained = inside + shape.embedding_parameters - kept
    return Parts(
        trained,
        inside,
        shape.parameters - trained,
        trains_head=not (keeps_embeddings and shape.tied),
        passive_blocks=blocks if keeps_embeddings else 0,
        base_copies=copies,
        has_reference=bool(forgetting.kl),
    )


def blocks_frozen(forgetting: Forgetting, layers: int, *, tied: bool = False) -> int:
    """Return how many of a model's blocks are frozen, from the input on.

    tied: the output embeddings are the input embeddings. Raises UserError for more blocks than there are, and where
    nothing but the last norm would be trained.
    """
    asked = 0 if forgetting.freeze is None else forgetting.freeze.blocks
    if asked == "all":
        return layers
    if asked > layers:
        expected = f"at most {layers}, which this model has"
        raise UserError("there are not so many blocks to freeze", "training.forgetting.freeze", f"{asked}", expected)
    if forgetting.lora is not None and asked == layers:
        todo = f"write fewer than {layers}, or lora: null"
        raise UserError("no block is left to put adapters on", "training.forgetting.freeze", f"{asked}", todo=todo)
    if forgetting.freeze is not None and forgetting.freeze.embeddings and asked == layers and tied:
        what = "nothing but the last norm is left to train"
        got, todo = (
            f"the embeddings and {asked} blocks, all that there are",
            "keep some blocks or the embeddings out of it",
        )
        raise UserError(what, "training.forgetting.freeze", got, todo=todo)
    return asked


def _matrices(shape: ModelShape) -> tuple[int, int]:
    """Return how many linear layers a block has, and the sum of their inputs and outputs: the parameters of a rank."""
    if shape.linears is not None:
        number, ends = shape.linears
        return number // shape.layers, ends // shape.layers
    hidden, inner = shape.hidden, shape.intermediate
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    in_mlp = 3 if shape.gated else 2
    mlp = in_mlp * (hidden + inner)
    if shape.model_type == "gpt_neox":  # one matrix for q, k and v
        return 2 + in_mlp, hidden + 3 * queries + queries + hidden + mlp
    return 4 + in_mlp, 2 * (hidden + queries) + 2 * (hidden + keys) + mlp
