"""Are our three sites those of others? Tiny random models, every layer, against three computations that share no code
with `capture`.

    python benchmarks/sites.py                              # makes an environment with SAELens (it brings TransformerLens) on the first run
    python benchmarks/sites.py --peer-python PATH           # an environment that is there already

Against transformers' hidden states (resid), against a forward written by hand on the weights, and, for Gemma 2, against
TransformerLens in its own virtual environment: it gets our checkpoint and our token ids, and gives back its own
activations. Writes results/benchmarks/sites.json."""
import argparse, os, subprocess, tempfile
from importlib import metadata
from pathlib import Path
import torch

HOOKS = dict(resid='hook_resid_post', mlp='hook_mlp_out', attn='attn.hook_z')  # where TransformerLens has our sites
OUT = Path(__file__).parent.parent/'results'/'benchmarks'/'sites.json'


def peer(folder: Path) -> None:
    """Runs with the other library's Python, which knows nothing of ours: Gemma 2 in `folder` by TransformerLens, its
    activations into peer.safetensors"""
    from safetensors.torch import load_file, save_file
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gemma_weights
    from transformers import AutoModelForCausalLM
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation='eager')
    c = hf.config
    cfg = HookedTransformerConfig(
        d_model=c.hidden_size,
        d_head=c.head_dim,
        n_heads=c.num_attention_heads,
        n_key_value_heads=c.num_key_value_heads,
        d_mlp=c.intermediate_size,
        n_layers=c.num_hidden_layers,
        d_vocab=c.vocab_size,
        n_ctx=c.max_position_embeddings,
        eps=c.rms_norm_eps,
        act_fn=c.hidden_activation,
        gated_mlp=True,
        normalization_type='RMS',
        final_rms=True,
        use_normalization_before_and_after=True,
        positional_embedding_type='rotary',
        rotary_base=c.rope_parameters['rope_theta'],
        rotary_dim=c.head_dim,
        attn_scale=c.query_pre_attn_scalar**0.5,
        attn_scores_soft_cap=c.attn_logit_softcapping,
        output_logits_soft_cap=c.final_logit_softcapping,
        use_local_attn=True,
        window_size=c.sliding_window,
        attn_types=['local' if t == 'sliding_attention' else 'global' for t in c.layer_types],
        original_architecture='Gemma2ForCausalLM',
        device='cpu',
        dtype=torch.float32,
    )
    model = HookedTransformer(cfg)
    model.load_and_process_state_dict(
        convert_gemma_weights(hf, cfg),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    with torch.no_grad(): logits, cache = model.run_with_cache(load_file(folder/'ids.safetensors')['ids'])
    got = {
        f'{kind}.{l}': cache[f'blocks.{l}.{h}'].flatten(2).contiguous()
        for l in range(c.num_hidden_layers)
        for kind, h in HOOKS.items()
    }
    save_file(
        got | dict(logits=logits.contiguous()),
        folder / 'peer.safetensors',
        metadata={k: metadata.version(k) for k in ('transformer-lens', 'sae-lens', 'transformers', 'torch')},
    )


def transformer_lens_rows(python: str, lm, ids) -> tuple[list[dict], dict]:
    "Our Gemma 2's sites against TransformerLens's: rows like those of `site_table`, and the versions on the other side"
    from jumprelu_sae.core import save_tensors
    from jumprelu_sae.sites import KINDS, Site, capture
    from safetensors import safe_open
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        lm.model.save_pretrained(folder)
        save_tensors(folder/'ids.safetensors', dict(ids=ids))
        subprocess.run(
            [python, __file__, '--worker', str(folder)],
            check=True,
            env={k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | dict(CUDA_VISIBLE_DEVICES=''),
        )
        with safe_open(folder / 'peer.safetensors', 'pt') as f:
            theirs, versions = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()
    ours = {str(k): v for k, v in capture(lm, ids, [Site(k, l) for k in KINDS for l in range(lm.n_layers)]).items()}
    with torch.no_grad(): ours['logits'] = lm.model(ids).logits
    assert ours.keys() == theirs.keys() and all(ours[k].shape == theirs[k].shape for k in ours)
    rows = []
    for kind in (*KINDS, 'logits'):
        gaps = [
            ((v - theirs[k]).abs().max().item(), theirs[k].abs().max().item())
            for k, v in ours.items()
            if k.startswith(kind)
        ]
        rows.append(
            dict(
                family=lm.family,
                site=kind,
                against='TransformerLens',
                absolute=max(d for d, _ in gaps),
                relative=max(d / m for d, m in gaps),
            )
        )
    return rows, versions


def main(a) -> None:
    from jumprelu_sae.core import run_env, write_json
    from jumprelu_sae.lm import load_lm
    from jumprelu_sae.sites import site_table
    from jumprelu_sae.text import ByteTokenizer, generated_corpus, pack
    torch.set_num_threads(1)
    python = a.peer_python
    if not python:
        from train_step import python_of
        python = python_of('SAELens', a.pip_args)
    # full rows: TransformerLens is told of no padding
    t = pack(generated_corpus(), ByteTokenizer(), a.seq_len, a.rows * (a.seq_len - 1))
    rows, versions = [], {}
    for family in ('gemma2', 'gemma3', 'llama'):
        lm = load_lm(f'tiny-{family}')
        rows += site_table(lm, t.ids)
        if family == 'gemma2': more, versions = transformer_lens_rows(python, lm, t.ids); rows += more
    for r in rows: print(f"{r['family']:8}{r['site']:8}{r['against']:16}{r['absolute']:10.1e}{r['relative']:10.1e}")
    write_json(
        a.out,
        dict(
            format=1,
            command=f'python benchmarks/sites.py --rows {a.rows} --seq-len {a.seq_len}'
            + (' --peer-python PATH' if a.peer_python else ''),
            what='largest difference over all layers and tokens; relative: to the largest value of the layer',
            models='random, 4 layers, d_model 32, 4 heads of 12, windows of 16, soft-caps 2 and 3 (see tiny_lm)',
            rows_of_tokens=a.rows,
            seq_len=a.seq_len,
            hooks=HOOKS,
            peer=versions,
            env=run_env(),
            rows=rows,
        ),
    )


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--peer-python', help='the Python of an environment with transformer_lens; default: one is made')
    p.add_argument('--rows', type=int, default=8)
    p.add_argument('--seq-len', type=int, default=64)
    p.add_argument('--out', type=Path, default=OUT)
    p.add_argument('--pip-args', nargs='*', default=[], help='for the environment of the other library')
    p.add_argument('--worker', type=Path, help=argparse.SUPPRESS)
    a = p.parse_args()
    peer(a.worker) if a.worker else main(a)
