"What a newcomer reads while a run is under way"
from types import SimpleNamespace

import torch

from jumprelu_sae import experiment, train
from jumprelu_sae.core import Settings


def terms(loss):
    return dict(loss=torch.tensor(loss), l0=torch.tensor(3.0))


def trainer(*names):
    return SimpleNamespace(dead=lambda n: 7, paths=SimpleNamespace(now={n: 'sparse' for n in names}))


def test_two_losses_have_names_and_one_needs_none():
    one = train.status(trainer('topk-4-seed0'), {'topk-4-seed0': terms(0.5)})
    assert one == 'loss 0.500 L0 3 dead 7 sparse'
    two = {'topk-4-seed0': terms(0.5), 'topk-8-seed0': terms(0.25)}
    assert train.status(trainer(*two), two) == f'topk-4: {one}; topk-8: {one.replace("0.500", "0.250")}'
    apart = {'topk-4-seed0': terms(0.5), 'topk-4-seed1': terms(0.5)}
    assert train.status(trainer(*apart), apart).startswith('topk-4-seed0: loss'), 'what tells them apart stays'
    own = {'mine': terms(0.5), 'yours': terms(0.5)}
    assert train.status(trainer(*own), own).startswith('mine: loss')


def test_how_many_of_how_many(monkeypatch, caplog):
    "Of ten SAEs four are finished already; the rest is trained in this process, and each part says where it is"
    calls = []
    def train_part(part, *_, which):
        calls.append((part[0], which))
        return len(part[1]), 0

    monkeypatch.setattr(experiment, 'train_part', train_part)
    caplog.set_level('INFO', 'jumprelu_sae')
    parts = [('a', [1, 2]), ('b', [3]), ('c', [4, 5, 6])]
    assert experiment.train_in_turn(parts, None, None, Settings(), 10) == [(2, 0), (1, 0), (3, 0)]
    assert calls == [('a', '5 to 6 of 10 SAEs'), ('b', '7 of 10 SAEs'), ('c', '8 to 10 of 10 SAEs')]
    assert [r.getMessage() for r in caplog.records] == ['6 of 10 SAEs', '7 of 10 SAEs', '10 of 10 SAEs']
    caplog.clear()
    experiment.train_in_turn(parts, None, None, Settings(progress=False), 10)
    assert not caplog.records
