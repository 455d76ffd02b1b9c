"""Does somebody else find the same L0, FVU and delta LM loss for a trained SAE?

    python benchmarks/second_opinion.py FOLDER                       # of a saved SAE, such as reports/laptop/saes/jumprelu-32-seed0
    python benchmarks/second_opinion.py FOLDER --peer-python PATH    # SAELens' evaluation too, in an environment that holds it

The second computation imports nothing of ours: transformers, PyTorch hooks, the SAE's tensors read from its folder, and
the loss that the model itself computes from labels. It runs in a process of its own, and gets only the tokens and two
masks: which tokens count, and which are massive. SAELens (`sae_lens.evals`) knows neither massive tokens nor a training
mean: it gets the rows that hold no massive token, and its explained variance, about the mean of its own tokens, is
compared with our FVU about that mean. Everything in float32. Writes results/evaluate/second_opinion.json; fails when
any number differs by more than 1e-3 of itself."""
import argparse, json, os, shutil, subprocess, sys, tempfile
from importlib import metadata
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file

OUT = Path(__file__).parent.parent/'results'/'evaluate'/'second_opinion.json'
TOLERANCE = 1e-3  # relative


def versions(*names: str) -> dict:
    return {n: metadata.version(n) for n in ('torch', 'transformers', 'safetensors', *names)}


# --- The second computation. Nothing from here to `saelens` may know our package.

def read_sae(folder: str):
    """encode(x) and decode(f) by the equations, from the tensors of the folder, and the training mean: raw units
    throughout"""
    t, cfg = load_file(f'{folder}/sae_weights.safetensors'), json.loads(Path(folder, 'cfg.json').read_text())
    kind, mu = cfg['architecture'], torch.tensor(cfg['metadata']['jumprelu_sae']['mean'])
    if kind not in ('jumprelu', 'topk', 'standard', 'gated'): sys.exit(f'no second opinion on {kind}')
    def encode(x):
        pi = x @ t['W_enc'] + t['b_gate' if kind == 'gated' else 'b_enc']
        if kind == 'gated':
            return torch.where(pi > 0, (x @ (t['W_enc']*t['r_mag'].exp()) + t['b_mag']).clamp_min(0), 0.)
        if kind == 'topk':
            least = pi.sort(-1, descending=True).values[..., cfg['k']-1:cfg['k']]
            return torch.where(pi >= least, pi, 0.).clamp_min(0)
        return torch.where(pi > t.get('threshold', torch.tensor(0.)), pi, 0.).clamp_min(0)
    return encode, lambda f: f @ t['W_dec'] + t['b_dec'], mu


def by_hand(task: Path) -> dict:
    "L0, FVU and delta LM loss, a row at a time"
    from transformers import AutoModelForCausalLM
    facts, t = json.loads((task/'task.json').read_text()), load_file(task/'rows.safetensors')
    model = AutoModelForCausalLM.from_pretrained(facts['model'], dtype=torch.float32).eval()
    (encode, decode, mu), layer = read_sae(facts['sae']), model.model.layers[facts['layer']]
    use, sums, losses = t['counts'] & ~t['massive'], torch.zeros(3, dtype=torch.float64), [0., 0., 0]
    for ids, counts, here in zip(t['ids'], t['counts'], use):
        # the prediction of ids[i+1] counts when both tokens do
        labels = torch.where(counts[1:] & counts[:-1], ids[1:], -100)
        labels, n = torch.cat([torch.tensor([-100]), labels])[None], int((labels >= 0).sum())
        def swap(module, args, out):
            v = out[0] if isinstance(out, tuple) else out
            x = v[0, here]
            f = encode(x)
            back = decode(f)
            sums.add_(torch.stack([(f > 0).sum(), ((x - back).double()**2).sum(), ((x - mu).double()**2).sum()]))
            v = v.clone()
            v[0, here] = back
            return (v, *out[1:]) if isinstance(out, tuple) else v
        with torch.no_grad():
            clean = model(input_ids=ids[None], labels=labels).loss.item()
            hook = layer.register_forward_hook(swap)
            spliced = model(input_ids=ids[None], labels=labels).loss.item()
            hook.remove()
        losses = [losses[0] + clean*n, losses[1] + spliced*n, losses[2] + n]
    return dict(l0=float(sums[0]/use.sum()), fvu=float(sums[1]/sums[2]), lm_loss_clean=losses[0]/losses[2],
        delta_lm_loss=(losses[1] - losses[0])/losses[2])


def saelens(task: Path) -> dict:
    "The same, by SAELens' own evaluation of our folder, opened as its own SAE, on the rows without massive tokens"
    from sae_lens.evals import EvalConfig, run_evals
    from sae_lens.load_model import load_model
    from sae_lens.saes.sae import SAE
    from sae_lens.training.activation_scaler import ActivationScaler
    facts, t = json.loads((task/'task.json').read_text()), load_file(task/'rows.safetensors')
    hook = f"model.layers.{facts['layer']}"
    sae = SAE.load_from_disk(facts['sae'], device='cpu')
    # the module's name, as this loader of models wants it
    sae.cfg.metadata.hook_name = hook
    model = load_model('AutoModelForCausalLM', facts['model'], device='cpu',
        model_from_pretrained_kwargs=dict(dtype=torch.float32), hook_names=[hook])
    rows = t['ids'][~t['massive'].any(1)]
    class Rows:                                                            # all that the evaluation asks of a store
        store_batch_size_prompts, context_size, at = 1, rows.shape[1], 0
        def get_batch_tokens(self, n):
            self.at += n
            return rows[self.at-n:self.at]
        def reset_input_dataset(self): self.at = 0
    cfg = EvalConfig(batch_size_prompts=1, n_eval_reconstruction_batches=len(rows), compute_ce_loss=True,
        n_eval_sparsity_variance_batches=len(rows), compute_sparsity_metrics=True, compute_variance_metrics=True)
    m = run_evals(sae, Rows(), model, ActivationScaler(), cfg, exclude_special_tokens=facts['specials'])[0]
    ce, q = m['model_performance_preservation'], m['reconstruction_quality']
    return dict(l0=m['sparsity']['l0'], fvu=1 - q['explained_variance'], lm_loss_clean=ce['ce_loss_without_sae'],
        delta_lm_loss=ce['ce_loss_with_sae'] - ce['ce_loss_without_sae'])


def worker(what: str, task: Path) -> None:
    torch.set_num_threads(1)
    got = dict(by_hand=by_hand, saelens=saelens)[what](task)
    assert not any(m.startswith('jumprelu_sae') for m in sys.modules), 'the second computation imported ours'
    (task/f'{what}.json').write_text(json.dumps(dict(metrics=got,
        versions=versions(*(['sae-lens', 'transformer-lens'] if what == 'saelens' else [])))))


# --- Ours

def ours(a, task: Path) -> tuple[dict, dict, dict]:
    "Write the task; our metrics on all rows, and on those without massive tokens as SAELens defines them"
    from jumprelu_sae.activations import held_out, trained_on
    from jumprelu_sae.core import Settings, sha256
    from jumprelu_sae.evaluate import LMEval, captured, evaluate_activations, massive_rule, training_mean
    from jumprelu_sae.lm import load_lm
    from jumprelu_sae.sae import load_sae
    from jumprelu_sae.text import special_ids
    torch.set_num_threads(1)
    sae = load_sae(a.folder)
    said = trained_on(sae)
    seq_len = a.seq_len or said.get('seq_len', 128)
    lm = load_lm(a.model or said['model']['name'], dtype='float32')
    acts = held_out(sae, lm, a.corpus, a.site, seq_len, a.rows*(seq_len-1), settings=Settings(progress=False))
    site, rule = acts.site, massive_rule(sae, acts)
    if site.kind != 'resid': sys.exit(f'{site}: a second opinion is written for the residual stream only')
    copy_folder(Path(a.folder), task, sae)
    ev = LMEval(lm, acts.tokens['test'], site, acts.tokens['test'].n_tokens)
    tokens, (x, doc) = ev.tokens, captured(lm, ev.tokens, site)
    losses, massive = ev.spliced(sae, rule)
    save_file(dict(ids=tokens.ids, counts=tokens.mask, massive=massive), task/'rows.safetensors')
    how = dict(sae=str(task), model=meta_folder(lm), layer=site.layer, specials=special_ids(lm.tokenizer))
    (task/'task.json').write_text(json.dumps(how))
    def metrics(rows, x, doc, mean):
        m, _ = evaluate_activations(sae, x, doc, rule, mean=mean)
        def avg(v): return float(v[rows].sum()/ev.counts[rows].sum())
        return dict(l0=m['l0'], fvu=m['fvu'], lm_loss_clean=avg(ev.clean), delta_lm_loss=avg(losses - ev.clean))
    calm = ~massive.any(1)
    row = tokens.mask.nonzero()[:, 0]
    xc = x[calm[row]]
    facts = dict(sae=sae.metadata['jumprelu_sae'].get('name'), sae_sha256=sha256(task/'sae_weights.safetensors'),
        arch=sae.cfg.arch)
    facts |= dict(d_sae=sae.cfg.d_sae, site=str(site), model=lm.name, revision=lm.info.get('revision'), dtype='float32')
    facts |= dict(corpus=acts.corpus, rows_of_tokens=len(tokens), seq_len=seq_len, tokens=tokens.n_tokens,
        tokens_sha256=tokens.sha)
    facts |= dict(predictions=int(ev.counts.sum()), massive=int(massive.sum()), rows_without_massive=int(calm.sum()))
    every = metrics(torch.ones_like(calm), x, doc, training_mean(sae))
    return every, metrics(calm, xc, doc[calm[row]], xc.mean(0, dtype=torch.float64).float()), facts


def copy_folder(folder: Path, task: Path, sae) -> None:
    "One copy for all, since a run may write the folder again meanwhile; an SAE of an earlier format is written anew"
    if not (folder/'cfg.json').exists(): return sae.save(task)
    for n in ('cfg.json', 'sae_weights.safetensors'): shutil.copy(folder/n, task)


def meta_folder(lm) -> str:
    "What another program can load the same weights from"
    from jumprelu_sae.lm import embedded_gemma
    return str(embedded_gemma()) if lm.name == 'gemma3-270m' else lm.name


def compare(name: str, mine: dict, theirs: dict) -> list[dict]:
    rows = [dict(against=name, metric=k, ours=mine[k], theirs=theirs[k],
        relative=abs(mine[k] - theirs[k])/abs(theirs[k])) for k in mine]
    for r in rows: print(f"{name:12}{r['metric']:16}{r['ours']:12.6f}{r['theirs']:12.6f}{r['relative']:10.1e}")
    return rows


def main(a) -> None:
    from jumprelu_sae.core import run_env, write_json
    with tempfile.TemporaryDirectory() as tmp:
        task, env = Path(tmp), {k: v for k, v in os.environ.items()
            if k != 'PYTHONPATH'} | dict(CUDA_VISIBLE_DEVICES='')
        mine, mine_calm, facts = ours(a, task)
        def ask(python, what):
            subprocess.run([python, __file__, str(task), '--worker', what], check=True, env=env)
            return json.loads((task/f'{what}.json').read_text())
        other = ask(sys.executable, 'by_hand')
        rows, said = compare('by hand', mine, other['metrics']), dict(by_hand=other['versions'])
        if a.peer_python:
            other = ask(a.peer_python, 'saelens')
            rows, said = rows + compare('SAELens', mine_calm, other['metrics']), said | dict(saelens=other['versions'])
    command = f"python benchmarks/second_opinion.py FOLDER --rows {a.rows}" + (' --peer-python PATH'
        if a.peer_python else '')
    what = 'relative: difference over the other value; SAELens: rows without massive tokens, FVU about their own mean'
    write_json(a.out, dict(format=1, command=command, what=what, tolerance=TOLERANCE, **facts, versions=said,
        env=run_env(), rows=rows))
    worst = max(r['relative'] for r in rows)
    print(f'largest relative difference {worst:.1e}, tolerance {TOLERANCE:.0e}')
    if worst > TOLERANCE: sys.exit(1)


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('folder', help='of a saved SAE')
    p.add_argument('--rows', type=int, default=32)
    p.add_argument('--seq-len', type=int, help='default: as in training')
    p.add_argument('--model', help='default: the one the folder names')
    p.add_argument('--site', help='default: the one the folder names')
    p.add_argument('--corpus', help='default: the one the folder names')
    p.add_argument('--peer-python', help='the Python of an environment with sae_lens')
    p.add_argument('--out', type=Path, default=OUT)
    p.add_argument('--worker', choices=('by_hand', 'saelens'), help=argparse.SUPPRESS)
    a = p.parse_args()
    worker(a.worker, Path(a.folder)) if a.worker else main(a)
