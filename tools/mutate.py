"""Bring faults into a copy of the package, one at a time, and see which tests go red.

`python tools/mutate.py` prints a table and exits with 1 if a fault survives, or if a text to be replaced is not in
the source exactly once. `python tools/mutate.py TEXT` runs the faults with that text in their name, place or module;
`--save` runs all and writes results/mutants.json; `--check` only says which texts no longer fit the source. A fault
goes into the module and into the notebook that it comes from, since a notebook's cells test what stands above them.
The first seven kinds are those of `02_ste`; the others are one line each, anywhere on the road."""

import importlib, json, os, re, shutil, subprocess, sys, tempfile, time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIB = 'jumprelu_sae'
STE, SPARSE = ['tests/test_golden.py', 'tests/test_ste.py'], [
    'tests/test_sparse.py::test_golden_values_by_the_sparse_step'
]


@dataclass
class Mutant:
    fault: str  # in words; the first seven kinds begin with their number
    where: str  # function it is brought into
    file: str  # of the package
    old: str  # what stands there, exactly once
    new: str  # what stands there instead
    tests: list  # what to run

    @property
    def module(self):
        return self.file.removesuffix('.py')


MUTANTS = [
    Mutant(
        '1 step on f',
        'l0',
        'ste.py',
        'return step_ste(pre, theta, bandwidth, kernel).sum',
        'return step_ste(pre*(pre > theta), theta, bandwidth, kernel).sum',
        STE,
    ),
    Mutant(
        '1 step on f',
        'jumprelu_and_l0',
        'ste.py',
        '@ w.reshape(-1, len(theta))',
        '@ _window(_gate(pre, theta).mul_(pre), theta, ctx.bandwidth, ctx.kernel).reshape(-1, len(theta))',
        STE,
    ),
    Mutant(
        '1 step on f',
        'JumpReLUSAE.activate_pairs',
        'sae.py',
        'step = step_ste(pre, theta, c.bandwidth, K) if',
        'step = step_ste(f, theta, c.bandwidth, K) if',
        ['tests/test_sparse.py::test_same_as_dense[jumprelu-float64]'],
    ),
    Mutant(
        '2 ReLU before the step',
        'all windows',
        'ste.py',
        'u = (pre - theta).div_(bandwidth)',
        'u = (pre.relu() - theta).div_(bandwidth)',
        STE,
    ),
    Mutant(
        '3 no chain factor of log theta',
        'JumpReLUSAE.threshold',
        'sae.py',
        'return self.theta_param.exp() if',
        'return self.theta_param + (self.theta_param.exp() - self.theta_param).detach() if',
        SPARSE,
    ),
    Mutant(
        '4 1/eps twice',
        'step_ste',
        'ste.py',
        'return None, -(w.sum_to_size(theta.shape)/ctx.bandwidth)',
        'return None, -(w.sum_to_size(theta.shape)/ctx.bandwidth**2)',
        STE,
    ),
    Mutant('4 1/eps twice', 'jumprelu_ste', 'ste.py', '*theta/ctx.bandwidth)', '*theta/ctx.bandwidth**2)', STE),
    Mutant(
        '4 1/eps twice', 'jumprelu_and_l0', 'ste.py', '-(g_theta/ctx.bandwidth)', '-(g_theta/ctx.bandwidth**2)', STE
    ),
    Mutant(
        '5 z for theta in eq. 11',
        'jumprelu_ste',
        'ste.py',
        '-(w.sum_to_size(theta.shape)*theta/',
        '-((w*pre).sum_to_size(theta.shape)/',
        STE,
    ),
    Mutant(
        '5 z for theta in eq. 11',
        'jumprelu_and_l0',
        'ste.py',
        'w.mul_(g_f).sum_to_size(theta.shape)*theta',
        'w.mul_(g_f).mul_(pre).sum_to_size(theta.shape)',
        STE,
    ),
    Mutant(
        '6 bf16 thresholds',
        'JumpReLUSAE._apply',
        'sae.py',
        'if p.dtype in (torch.bfloat16, torch.float16):',
        'if False:',
        ['nbs/04_sae.ipynb'],
    ),
    Mutant(
        '7 leak into z',
        'step_ste',
        'ste.py',
        'return None, -(w.sum_to_size(theta.shape)/',
        'return w/ctx.bandwidth, -(w.sum_to_size(theta.shape)/',
        STE,
    ),
    Mutant(
        '7 leak into z',
        'jumprelu_ste',
        'ste.py',
        'g_pre = _gate(pre, theta).mul_(g)\n',
        'g_pre = _gate(pre, theta).mul_(g) + _window(pre, theta, ctx.bandwidth,'
        ' ctx.kernel).mul_(g)*theta/ctx.bandwidth\n',
        STE,
    ),
    Mutant(
        '7 leak into z',
        'jumprelu_and_l0',
        'ste.py',
        'g_pre = _gate(pre, theta).mul_(g_f)',
        'g_pre = _gate(pre, theta).mul_(g_f) + g_l0[..., None]*_window(pre, theta, ctx.bandwidth,'
        ' ctx.kernel)/ctx.bandwidth',
        STE,
    ),
]


# -- one line each, from the streams to the evidence -------------------------------------------------------------------
STREAM, EVALUATE = ['tests/test_stream.py'], ['tests/test_evaluate.py']
TRAIN, SAE, CORE = ['tests/test_survivors.py', 'nbs/20_train.ipynb'], ['nbs/04_sae.ipynb'], ['nbs/00_core.ipynb']
ACTS, EXPERIMENT, DIST = (
    ['tests/test_activations.py'],
    ['tests/test_experiment.py'],
    [
        'tests/test_distributed.py::' + t
        for t in ('test_joint_selection_is_the_sorted_one', 'test_equal_to_one_process', 'test_own_streams_resume')
    ],
)
SURVIVORS = ['tests/test_survivors.py']
MAPPED, TOPK = ['tests/test_mapped_tokens.py'], ['tests/test_topk_memory.py']
TRAIN_AND_STREAM = ['nbs/20_train.ipynb', 'tests/test_stream.py::test_trainer_is_killed_and_resumed']

MUTANTS += [
    # core
    Mutant(
        'a state of other data is taken',
        'check_state',
        'core.py',
        "if other: raise UserError(f\"this state belongs",
        "if False: raise UserError(f\"this state belongs",
        CORE,
    ),
    Mutant(
        'identity without the data',
        'TensorStream.identity',
        'core.py',
        "dict(stream='tensor', data=self._facts, ",
        "dict(stream='tensor', ",
        CORE,
    ),
    Mutant(
        'identity without the scale',
        'TensorStream.identity',
        'core.py',
        "scaler=scaler, batch=self.batch, seed=self.seed)",
        "batch=self.batch, seed=self.seed)",
        CORE,
    ),
    Mutant(
        'content known by its shape only',
        'content_hash',
        'core.py',
        "h.update(part.view(torch.uint8).numpy().data)",
        "h.update(b'')",
        CORE,
    ),
    Mutant(
        'every epoch in the same order',
        'TensorStream.permutation',
        'core.py',
        "manual_seed(self.seed*1_000_003 + epoch))",
        "manual_seed(self.seed*1_000_003))",
        SURVIVORS,
    ),
    Mutant(
        'scale of the uncentred activations',
        'Scaler.fit',
        'core.py',
        "sum(((c.double() - m)**2).sum()",
        "sum((c.double()**2).sum()",
        CORE,
    ),
    # sae: gates and losses
    Mutant(
        'sparsity not warmed up',
        'SAE.loss',
        'sae.py',
        "t = dict(mse=err.square().sum(-1).mean(), sparsity=warm*penalty, aux=aux)",
        "t = dict(mse=err.square().sum(-1).mean(), sparsity=penalty, aux=aux)",
        SAE,
    ),
    Mutant(
        'AuxK explains an error that moves', 'SAE.aux', 'sae.py', "(err.detach() - err_hat)", "(err - err_hat)", SAE
    ),
    Mutant(
        'gated: auxiliary term trains the decoder',
        'GatedSAE.loss',
        'sae.py',
        "g @ self.W_dec.detach() - self.b_dec.detach()",
        "g @ self.W_dec - self.b_dec",
        SURVIVORS,
    ),
    Mutant(
        'row gradients not projected',
        '_Base.before_step',
        'sae.py',
        "g.addcmul_((g*w).sum(1, keepdim=True), w, value=-1)",
        "pass",
        SAE,
    ),
    Mutant(
        'rows not brought to unit norm',
        '_Base.after_step',
        'sae.py',
        "if self.unit_norm: self.W_dec /=",
        "if False: self.W_dec /=",
        SAE,
    ),
    Mutant(
        'threshold forgets',
        'BatchTopKSAE.update_threshold',
        'sae.py',
        "decay*self.threshold + (1-decay)*low",
        "low",
        SURVIVORS,
    ),
    Mutant(
        'not strict at the threshold',
        'BatchTopKSAE.activations',
        'sae.py',
        "return pre.relu() * (pre > self.threshold)",
        "return pre.relu() * (pre >= self.threshold)",
        SURVIVORS,
    ),
    # sae: finished
    Mutant(
        'threshold not in raw units',
        '_own',
        'sae.py',
        "t = dict(theta_param=c*sae.threshold.double())",
        "t = dict(theta_param=sae.threshold.double())",
        SAE,
    ),
    Mutant(
        'BatchTopK threshold not in raw units',
        '_own',
        'sae.py',
        "t = dict(threshold=c*sae.threshold.double()",
        "t = dict(threshold=sae.threshold.double()",
        SAE,
    ),
    Mutant(
        'magnitudes do not see the shift',
        '_own',
        'sae.py',
        "b_mag=c*rows*sae.b_mag.double() - shift*r.exp())",
        "b_mag=c*rows*sae.b_mag.double())",
        SAE,
    ),
    Mutant(
        'pre-encoder bias not folded',
        'folded',
        'sae.py',
        "shift = (mean + c*b_dec if sae.cfg.pre_bias else mean) @ W",
        "shift = mean @ W",
        SAE,
    ),
    Mutant('mean not given back', 'folded', 'sae.py', "b_dec=c*b_dec + mean)", "b_dec=c*b_dec)", SAE),
    Mutant(
        'finished SAE trained further',
        '_Base.train',
        'sae.py',
        "if mode and self.finished: raise",
        "if False: raise",
        SAE,
    ),
    Mutant('altered weights loaded', 'load_sae', 'sae.py', "want, ours.get('sha256'))", "want, None)", SAE),
    Mutant(
        'non-finite weights loaded',
        '_read_weights',
        'sae.py',
        "if not torch.isfinite(v).all(): raise",
        "if False: raise",
        SURVIVORS,
    ),
    Mutant(
        'normalised SAE read as plain',
        'read_sae_config',
        'sae.py',
        "if cfg.get(k) not in (plain, None): raise",
        "if False: raise",
        SAE,
    ),
    # sparse
    Mutant(
        'subclass trained on our objective',
        'has_sparse_step',
        'sparse.py',
        "if any(n in vars(cls) for n in REENACTED): return False",
        "pass",
        ['nbs/05_sparse.ipynb', 'nbs/20_train.ipynb'],
    ),
    Mutant(
        'instance trained on our objective',
        'has_sparse_step',
        'sparse.py',
        "if own or sae.support_threshold() is None: return False",
        "if sae.support_threshold() is None: return False",
        ['nbs/05_sparse.ipynb'],
    ),
    Mutant(
        'no hysteresis',
        'choose_path',
        'sparse.py',
        "(below if now == 'dense' else above)",
        "below",
        ['nbs/05_sparse.ipynb'],
    ),
    # train
    Mutant('warm-up overshoots', 'lr_factor', 'train.py', "0.1 + 0.45*(1 - math.cos", "0.1 + 0.9*(1 - math.cos", TRAIN),
    Mutant(
        'decay ends a step early',
        'lr_factor',
        'train.py',
        "(cfg.n_steps - step)/d)",
        "(cfg.n_steps - step - 1)/d)",
        TRAIN,
    ),
    Mutant(
        'warm-up ends a step early',
        'sparsity_factor',
        'train.py',
        "return 1. if step >= w else step/w",
        "return 1. if step >= w else (step + 1)/w",
        TRAIN,
    ),
    Mutant(
        'warm-up longer than the run',
        'TrainConfig.check_warmups',
        'train.py',
        "if n > self.n_steps or name",
        "if n > 10*self.n_steps or name",
        TRAIN,
    ),
    Mutant(
        'no rate of its own for thresholds',
        'make_adam',
        'train.py',
        "theta_lr = cfg.threshold_lr or cfg.lr",
        "theta_lr = cfg.lr",
        TRAIN,
    ),
    Mutant("Adam's usual momentum", 'make_adam', 'train.py', "betas=(float(cfg.beta1), ", "betas=(.9, ", TRAIN),
    Mutant(
        'gradient not projected',
        'run_step',
        'train.py',
        "    sae.before_step()\n    opt.step()",
        "    opt.step()",
        TRAIN,
    ),
    Mutant(
        'rows not normalised', 'run_step', 'train.py', "    opt.step()\n    sae.after_step()", "    opt.step()", TRAIN
    ),
    Mutant(
        'the start ends a step late',
        'run_step',
        'train.py',
        "sae.at_step(x, step >= cfg.steps(cfg.start))",
        "sae.at_step(x, step > cfg.steps(cfg.start))",
        TRAIN,
    ),
    Mutant(
        'sparsity at full strength at once', 'run_step', 'train.py', "warm=sparsity_factor(step, cfg)", "warm=1.", TRAIN
    ),
    Mutant(
        'dead a batch late',
        'run_step',
        'train.py',
        "dead=silent >= cfg.dead_after",
        "dead=silent > cfg.dead_after",
        TRAIN,
    ),
    Mutant(
        'silence counted in steps',
        'train_step',
        'train.py',
        "silent.add_(len(x)).masked_fill_",
        "silent.add_(1).masked_fill_",
        TRAIN,
    ),
    Mutant('NaN trained on', 'check_finite', 'train.py', "if not x.numel() or all(", "if True or all(", TRAIN),
    Mutant(
        'batch unlike the settings',
        'Trainer.batch',
        'train.py',
        "if len(x) != self.rows: raise",
        "if False: raise",
        TRAIN,
    ),
    Mutant(
        'key without the seed', 'train_key', 'train.py', "train=asdict(cfg), seed=seed))", "train=asdict(cfg)))", TRAIN
    ),
    Mutant(
        'key without the data',
        'train_key',
        'train.py',
        "dict(format=3, data=data, sae=sae",
        "dict(format=3, sae=sae",
        TRAIN,
    ),
    Mutant(
        'key without the code of a subclass',
        'class_facts',
        'train.py',
        "if theirs: facts['code'] =",
        "if False: facts['code'] =",
        TRAIN,
    ),
    Mutant(
        'identity without the data',
        'Trainer.identity',
        'train.py',
        "return dict(data=self.data(), train=",
        "return dict(train=",
        TRAIN,
    ),
    Mutant(
        'identity without the settings',
        'Trainer.identity',
        'train.py',
        "train=asdict(self.cfg), seeds=self.seeds()",
        "seeds=self.seeds()",
        TRAIN,
    ),
    Mutant(
        "another run's checkpoint is taken",
        'read_checkpoint',
        'train.py',
        "if other: refuse(",
        "if False: refuse(",
        TRAIN,
    ),
    Mutant(
        'altered checkpoint is taken',
        'read_checkpoint',
        'train.py',
        "load_tensors(folder/d['file'], d['sha256'])",
        "load_tensors(folder/d['file'])",
        TRAIN,
    ),
    Mutant(
        'never resumed',
        'train_saes',
        'train.py',
        "                trainer.load(folder)\n",
        "                pass\n",
        TRAIN_AND_STREAM,
    ),
    Mutant(
        'stream begins anew',
        'Trainer.move_stream',
        'train.py',
        "try: self.stream.load_state_dict(place)",
        "try: pass",
        TRAIN_AND_STREAM,
    ),
    Mutant(
        'weights not restored',
        'Trainer.fill',
        'train.py',
        "s.load_state_dict({k: t[_key(n, 'sae', k)] for k in s.state_dict()})",
        "pass",
        TRAIN_AND_STREAM,
    ),
    Mutant(
        'silence not restored',
        'Trainer.fill',
        'train.py',
        "self.silent[n].copy_(t[_key(n, 'silent')])",
        "pass",
        TRAIN_AND_STREAM,
    ),
    Mutant(
        'moments not restored',
        'Trainer.fill',
        'train.py',
        "self.opts[n].state[p] = adam_state({k: t[name] for k, name in at.items() if name in t}, p)",
        "pass",
        TRAIN_AND_STREAM,
    ),
    Mutant(
        'history not restored',
        'Trainer.fill',
        'train.py',
        "self.step, self.history = d['step'], d['history']",
        "self.step = d['step']",
        TRAIN_AND_STREAM,
    ),
    Mutant(
        'paths not restored',
        'Trainer.fill',
        'train.py',
        "self.paths.now, self.paths.log = d['paths']['now'], d['paths']['log']",
        "pass",
        TRAIN_AND_STREAM,
    ),
    Mutant(
        'stream saved a batch too far',
        'Trainer.go_back',
        'train.py',
        "for _ in range(self.step - self._at): next",
        "for _ in range(self.step - self._at + 1): next",
        TRAIN,
    ),
    Mutant(
        'a sparse path that is not there',
        'Paths.before',
        'train.py',
        "and not has_sparse_step(sae): self.decide(name, 1., step)",
        "and False: self.decide(name, 1., step)",
        TRAIN,
    ),
    # stream
    Mutant(
        'rows of another text',
        'TableRows.load_state_dict',
        'stream.py',
        "check_state(self, state) check_counts(state, row",
        "check_counts(state, row",
        STREAM + ['nbs/14_stream.ipynb'],
    ),
    Mutant(
        "another stream's state is taken",
        'Buckets.load_state_dict',
        'stream.py',
        "check_state(self, state) check_counts(state, bucket",
        "check_counts(state, bucket",
        STREAM + ['nbs/14_stream.ipynb'],
    ),
    Mutant(
        'every bucket in the same order',
        'permutation',
        'stream.py',
        "fingerprint([seed, what, number])",
        "fingerprint([seed, what])",
        STREAM + ['nbs/14_stream.ipynb'],
    ),
    Mutant(
        'order without the seed',
        'permutation',
        'stream.py',
        "fingerprint([seed, what, number])",
        "fingerprint([what, number])",
        STREAM + ['nbs/14_stream.ipynb'],
    ),
    Mutant(
        'massive at every site, not at any',
        'without_massive',
        'stream.py',
        ".any(0)\n",
        ".all(0)\n",
        STREAM + ['nbs/14_stream.ipynb'],
    ),
    Mutant(
        'not scaled',
        'deliver',
        'stream.py',
        "scalers[k](x) if k in scalers else x.float()",
        "x.float()",
        STREAM + ['nbs/14_stream.ipynb'],
    ),
    Mutant(
        'padding and BOS arrive',
        'ModelSource.__next__',
        'stream.py',
        "got = {k: got[k][mask] for k in self.sites}",
        "got = {k: got[k].flatten(0, 1) for k in self.sites}",
        STREAM,
    ),
    Mutant(
        'fitted without the massive tokens',
        'fit_stream',
        'stream.py',
        "rules, source.rules = source.rules, {}",
        "rules = source.rules",
        STREAM + ['nbs/14_stream.ipynb'],
    ),
    Mutant(
        'fit moves the stream',
        'fit_stream',
        'stream.py',
        "        source.rules = rules\n        stream.go_to(place)",
        "        source.rules = rules",
        STREAM + ['nbs/14_stream.ipynb'],
    ),
    Mutant(
        'an emptied bucket is dealt again',
        'Buckets.place',
        'stream.py',
        "return dict(bucket=now.number+1, pos=0) | now.end",
        "return dict(bucket=now.number+1, pos=0) | now.start",
        STREAM,
    ),
    Mutant(
        'trained from disk with the massive tokens',
        'StoreSource.__next__',
        'stream.py',
        "return without_massive(dict(x=t['x']), self.rules)",
        "return dict(x=t['x']), 0",
        STREAM + ['nbs/14_stream.ipynb'],
    ),
    Mutant(
        'shards in the same order every epoch',
        'StoreSource.__next__',
        'stream.py',
        "self.seed, 'epoch', self.epoch)",
        "self.seed, 'epoch', 0)",
        STREAM + ['nbs/14_stream.ipynb'],
    ),
    Mutant(
        'identity without the batch',
        'Buckets.identity',
        'stream.py',
        "own = dict(batch=self.batch, seed=self.seed)",
        "own = dict(seed=self.seed)",
        STREAM + ['nbs/14_stream.ipynb'],
    ),
    Mutant(
        'identity without the model',
        'ModelSource.identity',
        'stream.py',
        "return dict(model=self.lm.identity(), rows=rows",
        "return dict(rows=rows",
        STREAM + ['nbs/14_stream.ipynb'],
    ),
    # evaluate
    Mutant(
        'variance about zero', 'token_sums', 'evaluate.py', "_squares(x - mu), fires", "_squares(x), fires", EVALUATE
    ),
    Mutant(
        'massive tokens counted',
        'evaluate_activations',
        'evaluate.py',
        "big = rule(xb).cpu().long() if rule is not None else",
        "big =",
        EVALUATE,
    ),
    Mutant(
        'massive tokens make latents alive',
        'evaluate_activations',
        'evaluate.py',
        "fires[(big == 0).to(fires.device)].sum(0)",
        "fires.sum(0)",
        EVALUATE + ['nbs/30_evaluate.ipynb'],
    ),
    Mutant('massive tokens spliced', 'splice_fn', 'evaluate.py', "here = here & ~massive", "pass", EVALUATE),
    Mutant(
        'padding spliced',
        'splice_fn',
        'evaluate.py',
        "here = mask.to(v.device)",
        "here = torch.ones_like(mask)",
        EVALUATE,
    ),
    Mutant(
        'predictions of padding averaged',
        'LMEval',
        'evaluate.py',
        "self.tokens.mask[:, :-1] & self.tokens.mask[:, 1:]",
        "self.tokens.mask[:, :-1]",
        EVALUATE,
    ),
    Mutant(
        'a residual stream run a layer late',
        'ResumedForward',
        'evaluate.py',
        "self.site.layer + (self.site.kind == 'resid')",
        "self.site.layer",
        EVALUATE,
    ),
    Mutant(
        "the ablation of another vector",
        'ablation',
        'evaluate.py',
        "if r == rule and torch.equal(v, value): return d",
        "if r == rule: return d",
        EVALUATE,
    ),
    Mutant(
        'divergence the other way round',
        'divergences',
        'evaluate.py',
        "for f in (None, fn))",
        "for f in (fn, None))",
        EVALUATE,
    ),
    Mutant('gradient without the latents', 'attribution', 'evaluate.py', "(leaf[0].detach()*g)", "g", EVALUATE),
    Mutant(
        'recovered of the wrong whole',
        'full_metrics',
        'evaluate.py',
        "1 - d/worst if worst > 0",
        "d/worst if worst > 0",
        EVALUATE,
    ),
    Mutant(
        "not the SAE's own rule",
        'massive_rule',
        'evaluate.py',
        "if isinstance(said, dict) else acts.rule",
        "if False else acts.rule",
        EVALUATE,
    ),
    Mutant(
        "not the SAE's own mean",
        'evaluate',
        'evaluate.py',
        "mean = None if any(ours.get('mean') or []) else acts.mean",
        "mean = acts.mean",
        EVALUATE,
    ),
    Mutant(
        'judged elsewhere without a word',
        'evaluate',
        'evaluate.py',
        "if apart and not elsewhere:",
        "if False:",
        EVALUATE,
    ),
    Mutant(
        'what is not known is no other place',
        'judged_elsewhere',
        'evaluate.py',
        "if unknown: apart.append",
        "if False: apart.append",
        EVALUATE,
    ),
    Mutant('more tokens than are held out', 'Evaluator', 'evaluate.py', "if n_lm > held:", "if False:", EVALUATE),
    Mutant('dense means a fifth', '_frequencies', 'evaluate.py', "(q > .1).mean()", "(q > .2).mean()", EVALUATE),
    # activations
    Mutant(
        'the mean from disk counts massive tokens',
        'fit_from_disk',
        'activations.py',
        "total += t['x'][~rule(t['x'])].sum(0",
        "total += t['x'].sum(0",
        ACTS,
    ),
    Mutant(
        'massive tokens in memory', 'fit_in_memory', 'activations.py', "x = t['x'][~massive]", "x = t['x']", ACTS
    ),
    Mutant(
        'trained from disk with the massive tokens',
        'Activations.stream',
        'activations.py',
        "scaler=self.scaler, rule=self.rule, facts=facts)",
        "scaler=self.scaler, facts=facts)",
        ACTS,
    ),
    Mutant(
        'identity without the corpus',
        'Activations.identity',
        'activations.py',
        "site=str(self.site), corpus=self.corpus, seq_len=self.seq_len)",
        "site=str(self.site), seq_len=self.seq_len)",
        ACTS,
    ),
    Mutant(
        'identity without the massive rule',
        'Activations.identity',
        'activations.py',
        "massive=self.rule.factor, centre=self.centre,",
        "centre=self.centre,",
        ACTS,
    ),
    Mutant(
        'one store for all sites',
        'store_dir',
        'activations.py',
        "tokens=tokens.sha, site=str(site)))",
        "tokens=tokens.sha))",
        ACTS,
    ),
    Mutant(
        'mean of the scaler, not of training',
        'Activations.metadata',
        'activations.py',
        "mean=self.mean.tolist(), scale=self.scaler.scale)",
        "mean=self.scaler.mean.tolist(), scale=self.scaler.scale)",
        SURVIVORS,
    ),
    Mutant(
        'rows of 128 whatever it was trained on',
        'held_out',
        'activations.py',
        "said.get('seq_len') if seq_len is None else seq_len",
        "128 if seq_len is None else seq_len",
        ACTS,
    ),
    Mutant(
        'another text under the same name',
        'trained_elsewhere',
        'activations.py',
        "if sha and sha != acts.corpus['sha256']: a, b",
        "if False: a, b",
        ACTS,
    ),
    Mutant(
        'memory that is not there', 'decide_in_memory', 'activations.py', "if asked and need > free:", "if False:", ACTS
    ),
    # experiment
    Mutant(
        'an SAE of another run is taken',
        'is_finished',
        'experiment.py',
        ".get('key') == identity['key']: return True",
        ".get('key') is not None: return True",
        EXPERIMENT,
    ),
    Mutant(
        'a result of another SAE is taken',
        'found_result',
        'experiment.py',
        "if c.get('key') == identity['key'] and c.get('judged_on') == judged: return r",
        "if c.get('judged_on') == judged: return r",
        EXPERIMENT,
    ),
    Mutant(
        'a result on another text is taken',
        'found_result',
        'experiment.py',
        "if c.get('key') == identity['key'] and c.get('judged_on') == judged: return r",
        "if c.get('key') == identity['key']: return r",
        SURVIVORS,
    ),
    Mutant(
        'decisions are not kept',
        'kept_settings',
        'experiment.py',
        "return replace(settings, **{name: kept[name] for name in DECIDED}), kept",
        "return settings, kept",
        EXPERIMENT,
    ),
    Mutant(
        'decisions are overruled in silence',
        'kept_settings',
        'experiment.py',
        "if asked not in LEFT_OPEN and asked != kept[name]:",
        "if False:",
        EXPERIMENT,
    ),
    Mutant(
        'a stopped group starts anew',
        'train_group',
        'experiment.py',
        "begun = [j for j in group if j.name in names]",
        "begun = []",
        EXPERIMENT,
    ),
    Mutant(
        'an added sparsity trains all again',
        'train_group',
        'experiment.py',
        "missing = [j for j in group if not is_finished(",
        "missing = [j for j in group if True or not is_finished(",
        EXPERIMENT,
    ),
    Mutant(
        'evaluated on the CPU whatever is asked',
        'evaluate_job',
        'experiment.py',
        "load_sae(out/'saes'/job.name, settings.device)",
        "load_sae(out/'saes'/job.name)",
        SURVIVORS,
    ),
    # tuning
    Mutant(
        'tuning one empties the table',
        'tune',
        'tuning.py',
        "rows = {r['key']: r for r in rows_to_keep(out/'tuning.json', keys)}",
        "rows = {}",
        EXPERIMENT,
    ),
    Mutant(
        'rows of other data stay',
        'rows_to_keep',
        'tuning.py',
        "keep = [r for r in rows if r.get('key') in keys]",
        "keep = rows",
        EXPERIMENT + ['nbs/44_tuning.ipynb'],
    ),
    # distributed
    Mutant(
        'gradients summed, not averaged',
        'Ranks.average',
        'distributed.py',
        "return self.reduce(t, what).div_(self.world)",
        "return self.reduce(t, what)",
        DIST,
    ),
    Mutant(
        'ties kept by everybody',
        'joint_keep',
        'distributed.py',
        "keep.view(-1)[ties[:max(0, room)]] = True",
        "keep.view(-1)[ties] = True",
        DIST,
    ),
    Mutant(
        "threshold of one's own batch",
        'JointBatchTopK.update_threshold',
        'distributed.py',
        "super().update_threshold(self.ranks.reduce(low, 'threshold', 'min')[None], decay)",
        "super().update_threshold(low[None], decay)",
        DIST,
    ),
    Mutant(
        "L0 of one's own batch",
        'JointJumpReLU.penalty',
        'distributed.py',
        "return super().penalty(joint_mean(size.mean(), self.ranks)[None])",
        "return super().penalty(size)",
        DIST,
    ),
    Mutant(
        "start ends by one's own batch",
        'JointJumpReLU.end_start',
        'distributed.py',
        "round(len(x)*self.ranks.world*self.cfg.target_l0)",
        "round(len(x)*self.cfg.target_l0)",
        DIST,
    ),
    Mutant(
        'silence of one process',
        'joint_step',
        'distributed.py',
        "silent.add_(rows).masked_fill_",
        "silent.add_(len(x)).masked_fill_",
        DIST,
    ),
    Mutant(
        'everybody takes the first part',
        'SplitStream.__next__',
        'distributed.py',
        "return x[r.rank*b:(r.rank + 1)*b]",
        "return x[:b]",
        DIST,
    ),
    Mutant(
        "everybody resumes rank 0's stream",
        'PerRankStream.load_state_dict',
        'distributed.py',
        "state['ranks'][self.ranks.rank])",
        "state['ranks'][0])",
        DIST,
    ),
    Mutant(
        "each its own path",
        'JointPaths.decide',
        'distributed.py',
        "super().decide(name, float(self.ranks.average(share, 'path')), step)",
        "super().decide(name, float(share), step)",
        DIST,
    ),
    Mutant(
        'gradients averaged twice',
        'average_gradients',
        'distributed.py',
        "v.copy_(piece)",
        "v.copy_(piece/ranks.world)",
        DIST,
    ),
    Mutant(
        'two read the same documents',
        'harvest_share',
        'distributed.py',
        "pack_apart(share[ranks.rank], lm",
        "pack_apart(share[0], lm",
        ['nbs/22_distributed.ipynb'],
    ),
    Mutant(
        'two read the same rows',
        'SharedSource.read',
        'distributed.py',
        "self.forward(blocks[r.rank]) if",
        "self.forward(blocks[0]) if",
        ['nbs/22_distributed.ipynb'],
    ),
    Mutant(
        'resumed one bucket on',
        'Buckets.place',
        'stream.py',
        "return dict(bucket=now.number, pos=self.pos) | now.start",
        "return dict(bucket=now.number, pos=self.pos) | now.end",
        STREAM,
    ),
    Mutant(
        'BOS moves the documents',
        'MappedTokens.read',
        'stream.py',
        "np.searchsorted(self.starts, at, side='right') - 1",
        "np.searchsorted(self.starts, at, side='left') - 1",
        MAPPED,
    ),
    Mutant(
        'the last token does not count',
        'MappedTokens.read',
        'stream.py',
        "np.arange(k['seq_len']) > k['last']",
        "np.arange(k['seq_len']) >= k['last']",
        MAPPED,
    ),
    Mutant(
        'damaged tokens are read',
        'open_tokens',
        'stream.py',
        "or sha256(folder/name) != sha:",
        "or False:",
        MAPPED,
    ),
    Mutant(
        'a corpus in memory',
        'write_tokens',
        'stream.py',
        "for n, d in enumerate(docs, 1):",
        "for n, d in enumerate(list(docs), 1):",
        MAPPED,
    ),
    Mutant(
        'ties as the blocks fall',
        'find_topk',
        'sparse.py',
        "if not all_at_once and tied():",
        "if False:",
        TOPK,
    ),
    Mutant(
        "the screen's error forgotten on the candidate's side",
        'screened_candidates',
        'sparse.py',
        'low = (surely.clamp_min(0) - off).bfloat16()',
        'low = (surely.clamp_min(0) - 0*off).bfloat16()',
        ['nbs/05_sparse.ipynb'],
    ),
    Mutant(
        'the rounding of the largest forgotten',
        'screened_candidates',
        'sparse.py',
        'surely = top - top.abs()*2**-8 -',
        'surely = top -',
        ['nbs/05_sparse.ipynb'],
    ),
    Mutant(
        'a matrix of all pre-activations',
        'find_topk',
        'sparse.py',
        "(all_candidates if all_at_once else few_candidates)(x, *how)",
        "all_candidates(x, W, b_enc, k, joint, len(W))",
        TOPK,
    ),
    Mutant(
        'a line that forgets',
        'Line.raised',
        'sparse.py',
        "self.top = new if self.top is None else torch.cat([self.top, new])",
        "self.top = new",
        TOPK,
    ),
    Mutant(
        'the first checkpoint has no price',
        'Cadence.__init__',
        'train.py',
        "size > self.SLOW*self.SHARE*self.AT_RISK: self.try_out(folder, size)",
        "False: pass",
        ['nbs/20_train.ipynb'],
    ),
    Mutant(
        'checkpoints forget what they took',
        'Cadence.timed',
        'train.py',
        "self.spent += self.cost",
        "self.spent = 0.",
        ['nbs/20_train.ipynb'],
    ),
]

# Loaded by pytest in the copy: the copy must be what is imported, and every red test is named on a line of its own
PLUGIN = f'''
from pathlib import Path
import {LIB}
here = Path({LIB}.__file__).resolve().parent.parent
if here != Path(__file__).resolve().parent: raise ImportError(f'{LIB} comes from {{here}} and not from the copy')
def pytest_sessionstart(): print('COPY IS TESTED')
def pytest_runtest_logreport(report):
    if report.failed: print(f'\\nRED {{report.nodeid}}', flush=True)
def pytest_collectreport(report):
    if report.failed: print(f'\\nRED {{report.nodeid}} (cannot be collected)', flush=True)
'''


def notebook(m):
    "The notebook that a mutant's module comes from"
    return next(iter(sorted((ROOT / 'nbs').glob(f'[0-9][0-9]_{m.module}.ipynb'))), None)


def files(m):
    "Where the fault goes, from the root"
    nb = notebook(m)
    return [f'{LIB}/{m.file}', *([f'nbs/{nb.name}'] if nb else [])]


def cells(path):
    "A notebook, and the sources of its exported cells"
    nb = json.loads(path.read_text(encoding='utf-8'))
    code = [c for c in nb['cells'] if c['cell_type'] == 'code']
    return nb, [c for c in code if re.search(r'^\s*#\s*\|\s*exporti?\s*$', ''.join(c['source']), re.M)]


def pattern(old):
    "The text as a row of words and signs, with any white space between them: a formatter may move what it likes"
    return re.compile(r'\s*'.join(map(re.escape, re.findall(r'\w+|[^\w\s]', old))))


def count(path, old):
    "How often a text stands in a module, or in the exported cells of a notebook"
    texts = (
        [''.join(c['source']) for c in cells(path)[1]]
        if path.suffix == '.ipynb'
        else [path.read_text(encoding='utf-8')]
    )
    return sum(len(pattern(old).findall(t)) for t in texts)


def replaced(path, old, new):
    "The content of the file with the fault in it"

    def put(text):
        return pattern(old).sub(lambda found: new.strip(), text)

    if path.suffix != '.ipynb':
        return put(path.read_text(encoding='utf-8'))
    nb, exported = cells(path)
    for c in exported:
        c['source'] = put(''.join(c['source'])).splitlines(True)
    return json.dumps(nb, ensure_ascii=False, indent=1)


def matches(m):
    "How often the text to be replaced is in each source"
    return [count(ROOT / f, m.old) for f in files(m)]


def copy(folder):
    "The package, its tests and notebooks in `folder`, and the plugin; nothing is installed"
    skip = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
    for d in (LIB, 'tests', 'nbs', 'results', 'tools', 'benchmarks'):
        shutil.copytree(ROOT / d, folder / d, ignore=skip)
    for f in ('conftest.py', 'pyproject.toml', 'settings.ini', 'constraints.txt', 'README.md'):
        shutil.copy(ROOT / f, folder)
    (folder / 'mutant_plugin.py').write_text(PLUGIN, encoding='utf-8')


def pytest_args(tests, enough):
    "The command line of a run that stops after `enough` red tests"
    few = [f'--maxfail={enough}'] if enough else []
    return ['-q', '-s', '--tb=no', '-p', 'no:cacheprovider', '-p', 'mutant_plugin', *few, *tests]


HEAVY = (
    'torch numpy scipy safetensors transformers matplotlib.pyplot pytest tqdm.auto fastcore.all nbdev.process'
    ' execnb.shell'.split()
)


def in_a_fork(folder, args):
    "pytest in a child that finds what is heavy, and is not under test, imported already: exit status and output"
    for m in HEAVY:
        importlib.import_module(m)
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), (folder / 'output.txt').read_text(
            encoding='utf-8', errors='replace'
        )
    try:
        fd = os.open(folder / 'output.txt', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.chdir(folder)
        os.environ['PYTHONPATH'] = str(folder)
        sys.path.insert(0, str(folder))
        sys.dont_write_bytecode = True
        code = int(importlib.import_module('pytest').main(args))
        sys.stdout.flush()
    except BaseException:
        code = 70
    os._exit(code)


def in_a_process(folder, args):
    "pytest in an interpreter of its own: exit status and output"
    env = dict(os.environ, PYTHONPATH=str(folder), PYTHONDONTWRITEBYTECODE='1')
    r = subprocess.run([sys.executable, '-m', 'pytest', *args], cwd=folder, env=env, capture_output=True, text=True)
    return r.returncode, r.stdout + r.stderr


def run_tests(folder, tests, enough=None):
    """The red tests of the copy in `folder`, in the order they ran, at most `enough`; raises RuntimeError when the run
    says nothing about the copy"""
    run = in_a_process if LIB in sys.modules or not hasattr(os, 'fork') else in_a_fork
    code, out = run(folder, pytest_args(tests, enough))
    if 'COPY IS TESTED' not in out or code not in (0, 1, 2):
        raise RuntimeError(f'pytest ended with {code}:\n{out[-4000:]}')
    red = re.findall(r'^RED (.+)$', out, flags=re.M)
    if bool(red) != (code != 0):
        raise RuntimeError(f'red tests and exit status do not agree:\n{out[-2000:]}')
    return red


def run_mutant(m, folder, enough=None):
    "The tests that notice `m` in the copy in `folder`; the copy is as before afterwards"
    was = {folder / f: (folder / f).read_bytes() for f in files(m)}
    try:
        for p in was:
            p.write_text(replaced(p, m.old, m.new), encoding='utf-8')
        return run_tests(folder, m.tests, enough)
    finally:
        for p, src in was.items():
            p.write_bytes(src)


def stale():
    "Mutants whose text is not in their sources exactly once: lines to print"
    for m in MUTANTS:
        n = matches(m)
        if set(n) != {1}:
            yield f'{m.file} {m.where}: {m.fault}: its text is in {" and ".join(files(m))} {n} times: {m.old!r}'


ENOUGH = 1  # red tests, then a mutant is dead


def main(which='', save=False):
    chosen, rows, start = [m for m in MUTANTS if which in f'{m.fault} {m.where} {m.file}'], [], time.monotonic()
    if not chosen:
        print(f'no fault has {which!r} in its name: ' + ', '.join(dict.fromkeys(m.fault for m in MUTANTS)))
        return 1
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d)
        copy(folder)
        tests = list(dict.fromkeys(t for m in chosen for t in m.tests))
        if red := run_tests(folder, tests):
            print(f'red without any mutation: {red[0]}')
            return 1
        print(f"{'module':12s} {'brought into':32s} {'fault':50s} the first red test")
        for m in chosen:
            n, red = matches(m), []
            if set(n) == {1}:
                red = run_mutant(m, folder, ENOUGH)
                out = red[0] if red else 'SURVIVED'
            else:
                out = f'NO MATCH: its text is in {" and ".join(files(m))} {n} times'
            rows.append(dict(fault=m.fault, where=m.where, file=m.file, red=len(red), first=out))
            print(f'{m.module:12s} {m.where:32s} {m.fault:50s} {out}', flush=True)
    lived = [r for r in rows if not r['red']]
    tried, alive = Counter(r['file'] for r in rows), Counter(r['file'] for r in lived)
    print(*(f'{f:18s} {n:3d} mutants, {alive[f]} unnoticed' for f, n in tried.items()), sep='\n')
    print(f'{len(chosen)} mutants, {len(lived)} unnoticed, {time.monotonic() - start:.0f} s')
    if save:
        from jumprelu_sae.core import run_env, write_json

        seconds = round(time.monotonic() - start, 1)
        write_json(
            ROOT / 'results' / 'mutants.json',
            dict(format=1, command='python tools/mutate.py --save', rows=rows, seconds=seconds, env=run_env()),
        )
    return int(bool(lived))


if __name__ == '__main__':
    if '--check' in sys.argv:
        sys.exit('\n'.join(stale()) or 0)
    sys.exit(main(*[a for a in sys.argv[1:] if a != '--save'][:1], save='--save' in sys.argv))
