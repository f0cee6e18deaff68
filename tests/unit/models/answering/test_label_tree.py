"""Labels as a tree of their tokens, and the mask under which one pass scores all of them."""

from __future__ import annotations

import torch

from lorabank.models.answering.label_tree import LabelTree, tree_mask

END = 2


def test_labels_that_begin_alike_share_their_tokens() -> None:
    tree = LabelTree.build([[5, 6, END], [5, 7, END], [8, END], [5]])
    # nodes: 5, 5 6, 5 7, 8; the ends predict nothing
    assert tree.tokens.tolist() == [5, 6, 7, 8]
    assert tree.depth.tolist() == [0, 1, 1, 0]
    assert tree.sees.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    assert tree.source.tolist() == [0, 1, 2, 0, 1, 3, 0, 4, 0]
    assert tree.target.tolist() == [5, 6, END, 5, 7, END, 8, END, 5]
    assert tree.label.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3]
    assert (tree.columns, tree.size) == (5, 4)


def test_the_mask_of_a_tree() -> None:
    # one column of instruction; prompts of two tokens and of one; the nodes a, a b and c
    sees = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    prompt = torch.tensor([[1, 1], [0, 1]], dtype=torch.bool)
    mask = tree_mask(prompt, sees, 1, torch.float32)
    assert mask.shape == (2, 1, 5, 6)
    assert set(mask.unique().tolist()) == {0.0, torch.finfo(torch.float32).min}
    assert (mask[0, 0] == 0).int().tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0, 1],
    ]
    assert (mask[1, 0] == 0).int().tolist() == [
        [1, 1, 0, 0, 0, 0],  # padding: nobody reads it
        [1, 0, 1, 0, 0, 0],
        [1, 0, 1, 1, 0, 0],
        [1, 0, 1, 1, 1, 0],
        [1, 0, 1, 0, 0, 1],
    ]
