"""Do files written by other libraries give their numbers here, and do ours give ours there?

`python benchmarks/interop_roundtrip.py --peer-python saelens=A/bin/python dictionary_learning=B/bin/python
sparsify=C/bin/python` lets each interpreter (with sae-lens==6.54.12, dictionary-learning==0.1.0, eai-sparsify==1.3.3) make
SAEs of its own classes with seeded weights, save them by its own functions and compute latents and reconstructions of
given activations. Here the files are read by `formats.read_sae`, and both are compared. With SAELens the way back is gone,
too: our folders are opened there, once as they are and once with its `fold_W_dec_norm`, saved there, and read here.
A peer that is not given is left out. Then a file of Gemma Scope 2's layout at true size, 640 x 16,384, is written and
read in a process of its own, whose time and memory are measured. Writes results/benchmarks/interop_roundtrip.json; exits
with 1 unless all agree and all that must be refused is refused."""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
D_IN, D_SAE, K, N = 32, 256, 8, 4096
TOLERANCE = 1e-5  # largest difference, relative to the largest value there is

COMMON = '''
import json, sys
from pathlib import Path
from importlib.metadata import version
import torch
from safetensors.torch import load_file, save_file
root, D, M, K = Path(sys.argv[1]), *map(int, sys.argv[2:5])
x, made = load_file(root / 'x.safetensors')['x'], []

def fill(module, seed):
    "Seeded weights: rows of the decoder of norms 0.5 to 2.5, biases far from zero, thresholds above zero"
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted({**dict(module.named_parameters()), **dict(module.named_buffers())}.items()):
            if not p.is_floating_point():
                continue
            r = torch.randn(p.shape, generator=g, dtype=torch.float32).to(p.dtype)
            if 'threshold' in name:
                r = r.abs() + 1 if p.dim() else torch.full((), 2.5, dtype=p.dtype)
            elif p.dim() == 2:
                norms = [n if n == M else 1 for n in p.shape]
                r = r * (0.5 + 2 * torch.rand(norms, generator=g)).to(p.dtype) / D**0.5
            elif name == 'r_mag':
                r = 0.3 * r
            p.copy_(r)

def keep(name, f, x_hat, folder, **more):
    save_file(dict(f=f.detach().float().contiguous(), x_hat=x_hat.detach().float().contiguous()), root / f'{name}.out')
    made.append(dict(name=name, folder=str(folder), **more))
'''

SAELENS = COMMON + '''
from sae_lens import SAE, TrainingSAE

def cfg(architecture, **more):
    return dict(architecture=architecture, d_in=D, d_sae=M, dtype='float32', device='cpu', apply_b_dec_to_input=False,
        normalize_activations='none', reshape_activations='none', metadata={}) | more

def one(name, c, said=None):
    sae = SAE.from_dict(c)
    fill(sae, len(made))
    sae.save_model(root / name)
    sae = SAE.load_from_disk(root / name)
    with torch.no_grad():
        keep(name, sae.encode(x), sae(x), root / name)

for pre in (False, True):
    tail = ' (b_dec subtracted)' if pre else ''
    one('standard' + tail, cfg('standard', apply_b_dec_to_input=pre))
    one('gated' + tail, cfg('gated', apply_b_dec_to_input=pre))
    one('jumprelu' + tail, cfg('jumprelu', apply_b_dec_to_input=pre))
    for rows in (False, True):
        rest = dict(k=K, rescale_acts_by_decoder_norm=rows, apply_b_dec_to_input=pre)
        one('topk' + tail + (' in units of rows' if rows else ''), cfg('topk', **rest))
        for kind in ('batchtopk', 'matryoshka_batchtopk'):
            if kind == 'batchtopk' or not pre:
                name = kind + ' training' + tail + (' in units of rows' if rows else '')
                more = dict(matryoshka_widths=[M // 4, M]) if kind != 'batchtopk' else {}
                sae = TrainingSAE.from_dict(cfg(kind, **rest, **more))
                fill(sae, len(made))
                sae.save_model(root / name)
                sae.save_inference_model(root / (name + ' inference'))
                use = SAE.load_from_disk(root / (name + ' inference'))
                with torch.no_grad():
                    keep(name, use.encode(x), use(x), root / name)
                    keep(name + ', saved for inference', use.encode(x), use(x), root / (name + ' inference'))
one('expected_average_only_in', cfg('jumprelu', normalize_activations='expected_average_only_in'))
one('covariance_whitening', cfg('jumprelu', normalize_activations='covariance_whitening'))

for name, base, flat in (('legacy standard', 'standard', {}), ('legacy topk', 'topk', dict(architecture='standard',
        activation_fn_str='topk', activation_fn_kwargs=dict(k=K))), ('legacy gated', 'gated', dict(architecture='gated')),
        ('legacy jumprelu', 'jumprelu', dict(architecture='jumprelu'))):
    sae = SAE.from_dict(cfg(base, **(dict(k=K) if base == 'topk' else {})))
    fill(sae, len(made))
    sae.save_model(root / name)
    old = dict(d_in=D, d_sae=M, dtype='float32', hook_point='blocks.8.hook_resid_pre', normalize_activations=None) | flat
    (root / name / 'cfg.json').write_text(json.dumps(old))
    sae = SAE.load_from_disk(root / name)
    with torch.no_grad():
        keep(name, sae.encode(x), sae(x), root / name)

for name, c in (('layer_norm', cfg('standard', normalize_activations='layer_norm')),
        ('constant_norm_rescale', cfg('standard', normalize_activations='constant_norm_rescale')),
        ('abstopk', cfg('abstopk', k=K)), ('transcoder', cfg('transcoder', d_out=D)),
        ('skip_transcoder', cfg('skip_transcoder', d_out=D)), ('jumprelu_transcoder', cfg('jumprelu_transcoder', d_out=D)),
        ('matching_pursuit', cfg('matching_pursuit'))):
    sae = SAE.from_dict(c)
    sae.save_model(root / name)
    made.append(dict(name=name, folder=str(root / name), refused=True))

for folder in sorted(root.glob('ours *')):
    sae = SAE.load_from_disk(folder)
    sae.save_model(root / f'back {folder.name}')
    with torch.no_grad():
        keep(f'back {folder.name}', sae.encode(x), sae(x), root / f'back {folder.name}', ours=str(folder))
        if not folder.name.startswith('ours topk'):
            sae = SAE.load_from_disk(folder, fold_W_dec_norm=True)
            sae.save_model(root / f'folded {folder.name}')
            keep(f'folded {folder.name}', sae.encode(x), sae(x), root / f'folded {folder.name}', ours=str(folder))
print(json.dumps(dict(made=made, peer=dict(sae_lens=version('sae-lens'), torch=torch.__version__))))
'''

DICTIONARY_LEARNING = COMMON + '''
from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
for cls, rest in ((AutoEncoder, ()), (AutoEncoderNew, ()), (GatedAutoEncoder, ()), (JumpReluAutoEncoder, ()),
        (AutoEncoderTopK, (K,)), (BatchTopKSAE, (K,)), (MatryoshkaBatchTopKSAE, (K, [M // 4, M - M // 4]))):
    name, sae = cls.__name__, cls(D, M, *rest)
    fill(sae, len(made))
    folder = root / name
    folder.mkdir()
    torch.save(sae.state_dict(), folder / 'ae.pt')
    trainer = dict(dict_class=name, activation_dim=D, dict_size=M, layer=8, lm_name='none',
        submodule_name='resid_post_layer_8') | (dict(k=K) if rest else {})
    (folder / 'config.json').write_text(json.dumps(dict(trainer=trainer, buffer=dict(ctx_len=128))))
    sae = cls.from_pretrained(folder / 'ae.pt')
    with torch.no_grad():
        f = sae.encode(x)
        keep(name, f, sae.decode(f), folder)
print(json.dumps(dict(made=made, peer=dict(dictionary_learning=version('dictionary-learning'), torch=torch.__version__))))
'''

SPARSIFY = COMMON + '''
from sparsify import SparseCoder, SparseCoderConfig
for name, more in (('num_latents', dict(num_latents=M)), ('expansion_factor', dict(expansion_factor=M // D)),
        ('groupmax', dict(num_latents=M, activation='groupmax')), ('transcode', dict(num_latents=M, transcode=True)),
        ('skip_connection', dict(num_latents=M, skip_connection=True))):
    folder = root / name / 'layers.10'
    sae = SparseCoder(D, SparseCoderConfig(k=K, **more))
    fill(sae, len(made))
    sae.save_to_disk(folder)
    if name in ('groupmax', 'transcode', 'skip_connection'):
        made.append(dict(name=name, folder=str(folder), refused=True))
        continue
    sae = SparseCoder.load_from_disk(folder)
    with torch.no_grad():
        out = sae(x)
        f = torch.zeros(len(x), M).scatter(1, out.latent_indices, out.latent_acts)
        keep(name, f, out.sae_out, folder)
print(json.dumps(dict(made=made, peer=dict(sparsify=version('eai-sparsify'), torch=torch.__version__))))
'''

PEERS = dict(saelens=SAELENS, dictionary_learning=DICTIONARY_LEARNING, sparsify=SPARSIFY)

LOAD = '''
import json, re, sys, time
from pathlib import Path
from jumprelu_sae.formats import read_sae
import torch
def peak(): # MB; getrusage's peak would begin with that of the process that started this one
    return int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) / 1024
before, start = peak(), time.perf_counter()
sae = read_sae(sys.argv[1])
seconds, after = time.perf_counter() - start, peak()
print(json.dumps(dict(seconds=round(seconds, 3), before_MB=round(before), peak_MB=round(after),
    d_in=sae.cfg.d_in, d_sae=sae.cfg.d_sae)))
'''


def compare(f, x_hat, theirs):
    "Entries that are on in one only, and the largest differences relative to the largest values"
    out = dict(entries=f.numel(), on=int((theirs['f'] != 0).sum()), support_differs=int(((f != 0) != (theirs['f'] != 0)).sum()))
    for name, a, b in (('latents', f, theirs['f']), ('reconstruction', x_hat, theirs['x_hat'])):
        out[name] = float((a - b).abs().max() / b.abs().max())
    return out


def our_folders(root):
    "A finished SAE of every registered architecture in our layout, where there is one with and without the encoder bias"
    import torch
    from jumprelu_sae.core import Scaler
    from jumprelu_sae.sae import ARCHITECTURES, SAEConfig, make_sae, own_settings

    saes = {}
    for name in ARCHITECTURES:
        for pre_bias in (False, True):
            cfg = SAEConfig(name, D_IN, D_SAE, pre_bias=pre_bias, **own_settings(name, dict(k=K)))
            sae = make_sae(cfg)
            g = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for k, p in sae.named_parameters():
                    if p.dim() == 1:
                        p.add_(0.2 * torch.randn(p.shape, generator=g))
            if hasattr(sae, 'n_seen'):
                sae.threshold.fill_(0.2)
                sae.n_seen.fill_(1)
            folder = root / f"ours {name}{' pre_bias' if pre_bias else ''}"
            done = sae.eval().finish(Scaler(torch.full((D_IN,), 0.3), 2.0), dict(hook_name='blocks.9.hook_resid_post'))
            done.save(folder)
            saes[str(folder)] = done
    return saes


def with_peer(name, python):
    "Rows of one peer: what it made, read here"
    import torch
    from safetensors.torch import load_file, save_file
    from jumprelu_sae.core import UserError
    from jumprelu_sae.formats import origin, read_sae, recognise

    rows = []
    with tempfile.TemporaryDirectory() as d:
        root = Path(d)
        x = torch.randn(N, D_IN, generator=torch.Generator().manual_seed(7)) * 2 + 0.3
        save_file(dict(x=x), root / 'x.safetensors')
        ours = our_folders(root) if name == 'saelens' else {}
        args = [python, '-c', PEERS[name], str(root), str(D_IN), str(D_SAE), str(K)]
        r = subprocess.run(args, capture_output=True, text=True, cwd=root)
        if r.returncode:
            raise RuntimeError(f'{name}: the peer failed:\n{r.stderr[-3000:]}')
        said = json.loads(r.stdout.splitlines()[-1])
        for case in said['made']:
            row = dict(peer=name, case=case['name'])
            if case.get('refused'):
                try:
                    read_sae(case['folder'])
                    row |= dict(refused=None, ok=False)
                except UserError as e:
                    row |= dict(refused=str(e), ok='\n' not in str(e))
                rows.append(row)
                continue
            sae, theirs = read_sae(case['folder']), load_file(root / f"{case['name']}.out")
            with torch.no_grad():
                row |= compare(sae.encode(x), sae(x), theirs)
                if 'ours' in case:  # what we saved, against what comes back
                    was = ours[case['ours']]
                    back = compare(sae.encode(x), sae(x), dict(f=was.encode(x), x_hat=was(x)))
                    row |= {f'back_{k}': back[k] for k in ('support_differs', 'latents', 'reconstruction')}
            row |= dict(layout=recognise(case['folder']), gate=sae.cfg.arch, site=origin(sae).get('site'))
            worst = max(v for k, v in row.items() if k.split('_')[-1] in ('latents', 'reconstruction'))
            row['ok'] = worst <= TOLERANCE and 0 < row['on'] < row['entries']
            rows.append(row)
    return rows, said['peer']


def true_size():
    "A file of Gemma Scope 2's layout, 640 x 16,384: seconds and memory of reading it, in a process of its own"
    import torch
    from jumprelu_sae.formats import read_sae, write_gemma_scope
    from jumprelu_sae.sae import SAEConfig, make_sae

    with tempfile.TemporaryDirectory() as d:
        folder = Path(d) / 'gemma-scope-2-270m-pt' / 'resid_post' / 'layer_9_width_16k_l0_medium'
        sae = make_sae(SAEConfig('jumprelu', 640, 16_384, theta_init=1.0)).finish(None, dict(hf_hook_name='model.layers.9.output'))
        write_gemma_scope(folder, sae)
        size = (folder / 'params.safetensors').stat().st_size
        runs = []
        for _ in range(3):
            r = subprocess.run([sys.executable, '-c', LOAD, str(folder)], capture_output=True, text=True, check=True)
            runs.append(json.loads(r.stdout.splitlines()[-1]))
        x = torch.randn(64, 640, generator=torch.Generator().manual_seed(0))
        back = read_sae(folder)
        same = bool(torch.equal(back.encode(x), sae.encode(x)) and torch.equal(back(x), sae(x)))
        return dict(bytes=size, same=same, runs=runs)


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--peer-python', nargs='+', default=[], metavar='NAME=PATH', help=', '.join(PEERS))
    p.add_argument('--out', type=Path, default=ROOT / 'results' / 'benchmarks' / 'interop_roundtrip.json')
    args = p.parse_args(argv)
    pythons = dict(o.split('=', 1) for o in args.peer_python if '=' in o)
    if len(pythons) != len(args.peer_python) or not set(pythons) <= set(PEERS):
        p.error(f"--peer-python takes NAME=PATH, with a name of {', '.join(PEERS)}")
    from jumprelu_sae.core import run_env, write_json

    rows, peers = [], {}
    for name, python in pythons.items():
        some, peers[name] = with_peer(name, python)
        for r in some:
            if 'refused' in r:
                print(f"{name:20s} {r['case']:52s} refused: {str(r['refused'])[:90]}{'' if r['ok'] else '  NOT REFUSED'}")
            else:
                print(f"{name:20s} {r['case']:52s} {r['gate']:10s} support {r['support_differs']:4d} of {r['on']:7d}"
                    f"  latents {r['latents']:.1e}  reconstruction {r['reconstruction']:.1e}"
                    f"{'' if r['ok'] else '  DIFFERS'}", flush=True)
        rows += some
    size = true_size()
    print(f"Gemma Scope 2 at true size: {size['bytes'] / 1e6:.1f} MB, {size['runs']}, equal {size['same']}")
    command = 'python benchmarks/interop_roundtrip.py --peer-python ' + ' '.join(f'{n}=PEER/bin/python' for n in pythons)
    facts = dict(format=1, command=command, tolerance=TOLERANCE, d_in=D_IN, d_sae=D_SAE, n=N, peers=peers)
    write_json(args.out, facts | dict(rows=rows, true_size=size, env=run_env()))
    bad = [r for r in rows if not r['ok']]
    print(f'{len(rows)} cases, {len(bad)} not as they should be')
    return int(bool(bad) or not size['same'])


if __name__ == '__main__':
    sys.exit(main())
