"""From the Hub and to it, against a server on this machine: only the files that are needed, interrupted and repeated.

What the server answers is what huggingface_hub 2.4.0 asks when hf_xet is not used: create a repository or a branch,
list a folder, resolve a file (HEAD and GET with ranges), validate a card, preupload, the LFS batch, PUT of a large
file, commit. Every client runs in a process of its own, with HF_ENDPOINT set before the import."""
import base64, hashlib, json, os, re, subprocess, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote
import pytest, torch
from jumprelu_sae.core import Scaler
from jumprelu_sae import interop
from jumprelu_sae.formats import write_gemma_scope
from jumprelu_sae.sae import SAEConfig, make_sae

root = Path(__file__).parent.parent
COMMIT = re.compile(r'[0-9a-f]{40}')
LARGE = ('.safetensors', '.npz', '.pt')  # what goes by LFS

class Hub:
    "Repositories in memory, and what to break"
    def __init__(self):
        self.repos, self.lfs, self.requests, self.breaks, self.broken = {}, {}, [], [], 0
        self.stalled, self.clients = threading.Event(), {}

    def put(self, repo, files, branch='main'):
        "A commit: files added to a branch; its name follows from all of its content"
        r = self.repos.setdefault(repo, dict(branches={}, commits={}))
        now = r['commits'].get(r['branches'].get(branch), {}) | files
        sha = hashlib.sha1(repr(sorted((k, hashlib.sha1(v).hexdigest()) for k, v in now.items())).encode()).hexdigest()
        r['commits'][sha], r['branches'][branch] = now, sha
        return sha

    def find(self, repo, revision):
        "Commit and files, or None"
        r = self.repos.get(repo)
        if r is None: return None
        sha = r['branches'].get(revision, revision)
        return (sha, r['commits'][sha]) if sha in r['commits'] else None

    def should_break(self, what):
        "'cut', 'stall' or 'refuse' if this request is to be broken now"
        for how, pattern in self.breaks:
            if re.search(pattern, what):
                self.broken += 1
                return how

class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *a): pass

    def answer(self, code=200, body=b'', length=None, **headers):
        body = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
        self.send_response(code)
        for k, v in headers.items(): self.send_header(k.replace('_', '-'), v)
        self.send_header('Content-Length', str(len(body) if length is None else length))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(body)

    def body(self): return self.rfile.read(int(self.headers.get('Content-Length') or 0))

    def missing(self, what, text='not found'):
        self.answer(404, dict(error=text), X_Error_Code=what, X_Error_Message=text)

    def do_GET(self):
        hub, path = self.server.hub, unquote(self.path.partition('?')[0])
        hub.requests.append((self.command, path))
        if m := re.fullmatch(r'/([\w.-]+/[\w.-]+)/resolve/([^/]+|refs/pr/\d+)/(.+)', path):
            return self.resolve(*m.groups())
        if m := re.fullmatch(r'/api/models/([\w.-]+/[\w.-]+)/tree/([^/]+)(?:/(.*))?', path):
            return self.tree(*m.groups())
        if m := re.fullmatch(r'/api/models/([\w.-]+/[\w.-]+)(?:/revision/(.+))?', path):
            if m[1] not in (*hub.repos, 'a/gated'): return self.missing('RepoNotFound')
            found = ('0'*40, {}) if m[1] == 'a/gated' else hub.find(m[1], m[2] or 'main')
            return self.answer(body=dict(id=m[1], sha=found[0])) if found else self.missing('RevisionNotFound')
        return self.missing('EntryNotFound')
    do_HEAD = do_GET

    def tree(self, repo, revision, path):
        if repo == 'a/gated':
            return self.answer(
                403,
                dict(error='gated'),
                X_Error_Code='GatedRepo',
                X_Error_Message='Access to model a/gated is restricted',
            )
        if repo not in self.server.hub.repos: return self.missing('RepoNotFound')
        found = self.server.hub.find(repo, revision)
        if found is None: return self.missing('RevisionNotFound')
        inside = f'{path}/' if path else ''
        below = [f[len(inside):] for f in found[1] if f.startswith(inside)]
        if not below: return self.missing('EntryNotFound')
        files = [dict(type='file', oid='0'*40, size=1, path=inside + f) for f in below if '/' not in f]
        folders = [
            dict(type='directory', oid='0' * 40, path=inside + d)
            for d in sorted({f.partition('/')[0] for f in below if '/' in f})
        ]
        self.answer(body=files + folders)

    def resolve(self, repo, revision, path):
        hub = self.server.hub
        if repo not in hub.repos: return self.missing('RepoNotFound')
        found = hub.find(repo, revision)
        if found is None: return self.missing('RevisionNotFound')
        sha, files = found
        if path not in files: return self.answer(404, X_Error_Code='EntryNotFound', X_Repo_Commit=sha)
        data = files[path]
        head = dict(ETag=f'"{hashlib.sha256(data).hexdigest()}"', X_Repo_Commit=sha, Accept_Ranges='bytes')
        start = int((re.match(r'bytes=(\d+)-', self.headers.get('Range') or '') or [0, 0])[1])
        code = 206 if start else 200
        if start: head['Content_Range'] = f'bytes {start}-{len(data)-1}/{len(data)}'
        if self.command == 'HEAD': return self.answer(200, b'', len(data), **head)
        how = hub.should_break(f'GET {path}')
        if how is None: return self.answer(code, data[start:], **head)
        half = max(start, len(data)//2)
        self.answer(code, data[start:half], len(data) - start, **head)
        self.wfile.flush()
        if how == 'stall':
            hub.stalled.set()
            time.sleep(20)
        self.close_connection = True

    def do_PUT(self):
        hub, data = self.server.hub, self.body()
        hub.requests.append(('PUT', self.path))
        if hub.should_break('PUT lfs'): return self.answer(400, b'broken')
        oid = self.path.rpartition('/')[2]
        assert hashlib.sha256(data).hexdigest() == oid
        hub.lfs[oid] = data
        self.answer()

    def do_POST(self):
        hub, data, path = self.server.hub, self.body(), unquote(self.path.partition('?')[0])
        hub.requests.append(('POST', path))
        if path == '/api/repos/create':
            d = json.loads(data)
            repo = f"{d['organization']}/{d['name']}"
            there = repo in hub.repos
            if not there: hub.put(repo, {})
            hub.repos[repo].setdefault('visibility', d.get('visibility'))
            return self.answer(409 if there else 200, dict(url=f'{hub.url}/{repo}'))
        if path == '/api/validate-yaml': return self.answer(body=dict(errors=[], warnings=[]))
        if m := re.fullmatch(r'/api/models/([\w.-]+/[\w.-]+)/branch/(.+)', path):
            there = m[2] in hub.repos[m[1]]['branches']
            hub.repos[m[1]]['branches'].setdefault(m[2], hub.repos[m[1]]['branches']['main'])
            return self.answer(409 if there else 200, {})
        if m := re.fullmatch(r'/api/models/([\w.-]+/[\w.-]+)/preupload/(.+)', path):
            return self.preupload(m[1], m[2], json.loads(data))
        if m := re.fullmatch(r'/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch', path):
            return self.batch(json.loads(data))
        if m := re.fullmatch(r'/api/models/([\w.-]+/[\w.-]+)/commit/(.+)', path): return self.commit(m[1], m[2], data)
        self.missing('EntryNotFound')

    def preupload(self, repo, revision, d):
        there, out = self.server.hub.find(repo, revision)[1], []
        for f in d['files']:
            large = f['path'].endswith(LARGE)
            one = dict(path=f['path'], uploadMode='lfs' if large else 'regular', shouldIgnore=False)
            if f['path'] in there:
                v = there[f['path']]
                one['oid'] = (
                    hashlib.sha256(v).hexdigest() if large else hashlib.sha1(b'blob %d\0' % len(v) + v).hexdigest()
                )
            out.append(one)
        self.answer(body=dict(files=out))

    def batch(self, d):
        url, out = f'http://{self.headers["Host"]}/lfs', []
        for o in d['objects']:
            have = o['oid'] in self.server.hub.lfs
            out.append(o if have else o | dict(actions=dict(upload=dict(href=f"{url}/{o['oid']}", header={}))))
        self.answer(body=dict(transfer='basic', objects=out))

    def commit(self, repo, revision, data):
        hub = self.server.hub
        if hub.should_break('POST commit'): return self.answer(500, dict(error='broken'))
        new = {}
        for line in map(json.loads, data.splitlines()):
            v = line['value']
            if line['key'] == 'file': new[v['path']] = base64.b64decode(v['content'])
            if line['key'] == 'lfsFile': new[v['path']] = hub.lfs[v['oid']]
        sha = hub.put(repo, new, revision)
        self.answer(body=dict(commitUrl=f'{hub.url}/{repo}/commit/{sha}', commitOid=sha, pullRequestUrl=None))

@pytest.fixture
def hub():
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.daemon_threads = True
    server.hub = Hub()
    server.hub.url = f'http://127.0.0.1:{server.server_port}'
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.hub
    for p in server.hub.clients.values():
        p.stdin.close()
        p.wait(30)
    server.shutdown()

def start(hub, code, tmp, **env):
    "A client in a process of its own"
    own = (
        dict(
            HF_ENDPOINT=hub.url,
            HF_HOME=str(tmp / 'hf'),
            HF_HUB_DISABLE_XET='1',
            HF_HUB_DISABLE_TELEMETRY='1',
            HF_HUB_DISABLE_PROGRESS_BARS='1',
            HF_HUB_DOWNLOAD_TIMEOUT='5',
            NO_PROXY='127.0.0.1',
            OMP_NUM_THREADS='1',
            PYTHONPATH=str(root),
            TMPDIR=str(tmp / 'tmp'),
        )
        | env
    )
    (tmp/'tmp').mkdir(exist_ok=True)
    keep = {k: v for k, v in os.environ.items() if not k.startswith('HF_') and 'proxy' not in k.lower()}
    return subprocess.Popen([sys.executable, '-c', PRELUDE + code], cwd=tmp, env=keep | own,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=open(tmp/'stderr', 'a'), text=True)

PRELUDE = '''
import json, sys
import jumprelu_sae as js
from jumprelu_sae.core import UserError
from jumprelu_sae.interop import push, load_sae
def told(f):
    try: return f()
    except UserError as e: return f'error: {e}'
'''

LOOP = """
import contextlib, io
for line in sys.stdin:
    out = io.StringIO()
    with contextlib.redirect_stdout(out): exec(json.loads(line), dict(globals()))
    print(json.dumps(out.getvalue()), flush=True)
"""

def run(hub, code, tmp, **env):
    "What a client prints, which has to end well; one process serves a whole test, for each environment"
    key = (str(tmp), *sorted(env.items()))
    p = hub.clients.get(key) or hub.clients.setdefault(key, start(hub, LOOP, tmp, **env))
    try:
        p.stdin.write(json.dumps(code) + '\n')
        p.stdin.flush()
        return json.loads(p.stdout.readline()).strip()
    except (ValueError, OSError):
        p.kill()
        pytest.fail((tmp/'stderr').read_text()[-3000:])

def small_sae(d_in=8, d_sae=16, seed=0, **said):
    "A finished JumpReLU SAE with thresholds and biases of its own"
    g = torch.Generator().manual_seed(seed)
    sae = make_sae(SAEConfig('jumprelu', d_in, d_sae, log_threshold=False), seed)
    with torch.no_grad():
        sae.b_enc += torch.randn(d_sae, generator=g)*.1
        sae.theta_param += torch.rand(d_sae, generator=g)*.3
    meta = dict(model_name='tiny-gemma2', hook_name='blocks.2.hook_resid_post', hf_hook_name='model.layers.2.output',
        prepend_bos=True, dataset_path='generated', context_size=32)
    return sae.finish(Scaler(torch.zeros(d_in), 2.), meta | said)

def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(Path(folder).rglob('*')) if p.is_file()}

def gets(hub, after=0):
    return [p.rpartition('/')[2] for m, p in hub.requests[after:] if m == 'GET' and '/resolve/' in p]

def on_hub(hub, sae, repo, path, tmp, more=(), how='ours'):
    "Put an SAE on the server, with other files beside it"
    folder = tmp/'made'/path
    if how == 'ours': sae.save(folder)
    else: write_gemma_scope(folder, sae)
    files = {f'{path}/{k}': v for k, v in files_of(folder).items()} | {f'{path}/{k}': v for k, v in more}
    return hub.put(repo, files), files_of(folder)

LOAD = """
sae = told(lambda: load_sae({where!r}, **{kw!r}))
print(sae if isinstance(sae, str) else json.dumps(dict(hub=sae.metadata['jumprelu_sae']['hub'], sum=float(sae.W_dec.double().sum()), site=js.load_sae and sae.metadata.get('hook_name'))))
"""
def load(hub, where, tmp, env=None, **kw):
    "What another process gets: a dict, or the error's line"
    out = run(hub, LOAD.format(where=where, kw=kw), tmp, **(env or {})).splitlines()[-1]
    return out if out.startswith('error: ') else json.loads(out)

def total(sae): return float(sae.W_dec.detach().double().sum())

# -- coming in ---------------------------------------------------------------------------------------------------------
def test_only_the_needed_files_are_fetched_and_pinned(hub, tmp_path):
    sae = small_sae()
    more = [('examples.safetensors', b'x'*1000), ('README.md', b'# read me'), ('sparsity.safetensors', b'y')]
    first, _ = on_hub(hub, sae, 'a/saes', 'resid.2/one', tmp_path, more)
    got = load(hub, 'hf:a/saes/resid.2/one', tmp_path)
    assert sorted(gets(hub)) == ['cfg.json', 'sae_weights.safetensors']
    assert got['hub'] == dict(repo='a/saes', path='resid.2/one', revision='main', commit=first)
    assert got['sum'] == pytest.approx(total(sae))
    at = len(hub.requests)
    assert load(hub, 'hf:a/saes/resid.2/one', tmp_path)['hub'] == got['hub']
    assert gets(hub, at) == []                                             # once more: nothing is fetched again

def test_a_revision_is_kept(hub, tmp_path):
    old, new = small_sae(), small_sae(seed=1)
    first, _ = on_hub(hub, old, 'a/saes', 'one', tmp_path)
    second, _ = on_hub(hub, new, 'a/saes', 'one', tmp_path)
    assert first != second
    assert load(hub, 'hf:a/saes/one', tmp_path)['sum'] == pytest.approx(total(new))
    for name, kw in ((f'hf:a/saes/one@{first}', {}), ('hf:a/saes/one', dict(revision=first))):
        got = load(hub, name, tmp_path, **kw)
        assert got['sum'] == pytest.approx(total(old)) and got['hub']['commit'] == first
    assert 'has no revision' in load(hub, 'hf:a/saes/one@v9', tmp_path)

def test_a_push_in_between_mixes_nothing(hub, tmp_path):
    "The branch moves after the first file; the second comes from the first one's commit"
    old, new = small_sae(), small_sae(seed=1)
    first, _ = on_hub(hub, old, 'a/saes', 'one', tmp_path)
    resolve = Handler.resolve
    def moves(self, repo, revision, path):
        resolve(self, repo, revision, path)
        if self.command == 'GET' and path.endswith('cfg.json'): on_hub(hub, new, 'a/saes', 'one', tmp_path)
    Handler.resolve = moves
    try: got = load(hub, 'hf:a/saes/one', tmp_path)
    finally: Handler.resolve = resolve
    assert hub.repos['a/saes']['branches']['main'] != first
    assert got['hub']['commit'] == first and got['sum'] == pytest.approx(total(old))

def test_gemma_scope_2_from_its_folder_name(hub, tmp_path):
    sae, repo, path = small_sae(), 'google/gemma-scope-2-270m-pt', 'resid_post/layer_9_width_16k_l0_medium'
    on_hub(hub, sae, repo, path, tmp_path, [('examples.safetensors', b'x'*1000)], 'gemma')
    del hub.repos[repo]['commits'][hub.repos[repo]['branches']['main']][f'{path}/config.json']  # some folders have none
    got = load(hub, f'hf:{repo}/{path}', tmp_path)
    assert gets(hub) == ['params.safetensors']
    assert got['site'] == 'blocks.9.hook_resid_post' and got['sum'] == pytest.approx(total(sae), rel=1e-5)
    at = len(hub.requests)
    one_file = load(hub, f'hf:{repo}/{path}/params.safetensors', tmp_path)
    assert one_file['sum'] == got['sum'] and gets(hub, at) == []

def test_offline_from_the_cache(hub, tmp_path):
    sae = small_sae()
    on_hub(hub, sae, 'a/saes', 'one', tmp_path)
    assert 'load it once without offline' in load(hub, 'hf:a/saes/one', tmp_path, offline=True)
    assert not hub.requests
    load(hub, 'hf:a/saes/one', tmp_path)
    at = len(hub.requests)
    ways = [dict(offline=True), dict(env=dict(HF_HUB_OFFLINE='1')), dict(env=dict(HF_ENDPOINT='http://127.0.0.1:9'))]
    for how in ways: assert load(hub, 'hf:a/saes/one', tmp_path, **how)['sum'] == pytest.approx(total(sae))
    assert len(hub.requests) == at
    assert 'cannot be reached' in load(hub, 'hf:a/saes/two', tmp_path, env=dict(HF_ENDPOINT='http://127.0.0.1:9'))

def test_what_is_not_there_is_said_in_one_line(hub, tmp_path):
    on_hub(hub, small_sae(), 'a/saes', 'one', tmp_path)
    hub.put('a/qwen', {'layer0.sae.pt': b'0', 'layer1.sae.pt': b'1'})
    for where, says in (('hf:a/none/one', 'no repository a/none'), ('hf:a/saes/two', "has no 'two'"),
            ('hf:a/gated/one', 'accept its terms'), ('hf:a/saes', 'holds no SAE that can be read: it holds one'),
            ('hf:a/saes/one/params.npz', "has no 'one/params.npz'"), ('hf:a/qwen', 'name one of its files')):
        line = load(hub, where, tmp_path)
        assert line.startswith('error: ') and says in line and len(line) < 400, (where, line)
    assert not gets(hub)

def test_a_file_below_the_folder(hub, tmp_path):
    "Llama Scope has its weights one folder deeper; they are asked for, and nothing beside them"
    hub.put(
        'a/llama',
        {
            'one/hyperparams.json': b'{}',
            'one/checkpoints/final.safetensors': b'no weights',
            'one/checkpoints/step1.safetensors': b'',
        },
    )
    line = load(hub, 'hf:a/llama/one', tmp_path)
    assert line.startswith('error: ') and sorted(gets(hub)) == ['final.safetensors', 'hyperparams.json']

def test_interrupted_pulls_end_in_the_same_files(hub, tmp_path):
    """Cut off by the server, then killed in the middle of a file, then let through: the same bytes as an undisturbed
    pull"""
    sae = small_sae(64, 4096)                                            # 2 MB
    _, want = on_hub(hub, sae, 'a/saes', 'one', tmp_path)
    hub.breaks = [('cut', 'sae_weights')]
    line = load(hub, 'hf:a/saes/one', tmp_path)
    assert line.startswith('error: ') and 'run it again' in line, line
    cut = hub.broken
    hub.breaks = [('stall', 'sae_weights')]
    p = start(hub, LOAD.format(where='hf:a/saes/one', kw={}), tmp_path)
    assert hub.stalled.wait(60)
    p.kill()
    p.communicate()
    stalled = hub.broken - cut
    assert cut > 0 and stalled > 0
    # half a file is no file
    assert 'load it once without offline' in load(hub, 'hf:a/saes/one', tmp_path, offline=True)
    hub.breaks = []
    for _ in range(2): assert load(hub, 'hf:a/saes/one', tmp_path)['sum'] == pytest.approx(total(sae))
    snapshot = next((tmp_path/'hf'/'hub').glob('models--a--saes/snapshots/*/one'))
    assert files_of(snapshot) == want
    print('interruptions hit:', cut, 'cut,', stalled, 'killed')

# -- going out ---------------------------------------------------------------------------------------------------------
PUSH = "print(told(lambda: push({folder!r}, 'me/saes', **{kw!r})))"
def send(hub, folder, tmp, **kw):
    return run(hub, PUSH.format(folder=str(folder), kw=dict(license='cc-by-4.0') | kw), tmp).splitlines()[-1]

def there(hub, branch='main'): return hub.find('me/saes', branch)[1]

def test_push_is_one_commit_that_comes_back(hub, tmp_path):
    sae = small_sae()
    sae.save(tmp_path/'mine')
    name = send(hub, tmp_path/'mine', tmp_path, subfolder='resid.2/one')
    assert COMMIT.fullmatch(name.partition('@')[2]), name
    assert sorted(there(hub)) == ['README.md', 'resid.2/one/cfg.json', 'resid.2/one/sae_weights.safetensors']
    assert {k.rpartition('/')[2]: v for k, v in there(hub).items() if k != 'README.md'} == files_of(tmp_path/'mine')
    card = there(hub)['README.md'].decode()
    for words in (
        'license: cc-by-4.0',
        'library_name: saelens',
        'blocks.2.hook_resid_post',
        'model.layers.2.output',
        "load_sae('hf:me/saes/resid.2/one')",
    ):
        assert words in card
    assert len(hub.repos['me/saes']['commits']) == 2                       # the empty one and this one
    assert load(hub, name, tmp_path)['sum'] == pytest.approx(total(sae))
    at = len(hub.requests)
    assert send(hub, tmp_path/'mine', tmp_path, subfolder='resid.2/one') == name
    assert not [r for r in hub.requests[at:] if r[0] == 'PUT' or '/commit/' in r[1]]   # nothing left to do
    assert not list((tmp_path/'tmp').iterdir())                            # and nothing left behind

def test_a_second_sae_keeps_the_first(hub, tmp_path):
    for i in range(2): small_sae(seed=i).save(tmp_path/f'sae{i}')
    send(hub, tmp_path/'sae0', tmp_path, subfolder='zero')
    before = there(hub)
    send(hub, tmp_path/'sae1', tmp_path, subfolder='one')
    now = there(hub)
    assert {k: v for k, v in now.items() if k in before and k != 'README.md'} == {
        k: v for k, v in before.items() if k != 'README.md'
    }
    card = now['README.md'].decode()
    assert card.count('## `zero`') == card.count('## `one`') == 1 and card.count('license:') == 1
    assert 'license cc-by-4.0, and this push mit' in send(
        hub, tmp_path / 'sae1', tmp_path, subfolder='two', license='mit'
    )
    assert there(hub) == now

def test_branch_layout_and_made_up_folder(hub, tmp_path):
    small_sae().save(tmp_path/'mine')
    name = send(hub, tmp_path/'mine', tmp_path, revision='trial', layout='gemma-scope-2', private=True)
    assert not there(hub) and hub.repos['me/saes']['visibility'] == 'private'
    folder = name.partition('@')[0].removeprefix('hf:me/saes/')
    assert sorted(there(hub, 'trial')) == ['README.md', f'{folder}/config.json', f'{folder}/params.safetensors']
    assert 'library_name' not in there(hub, 'trial')['README.md'].decode()
    assert load(hub, name, tmp_path)['sum'] == pytest.approx(total(small_sae()), rel=1e-5)

def test_interrupted_pushes_end_in_the_same_files(hub, tmp_path):
    "The large file is refused, then the commit: nobody sees half an SAE; then it goes through"
    small_sae(64, 4096).save(tmp_path/'mine')
    hub.breaks, lines = [('refuse', 'PUT lfs')], []
    lines.append(send(hub, tmp_path/'mine', tmp_path, subfolder='one'))
    assert hub.broken > 0 and there(hub) == {} and not hub.lfs
    first = hub.broken
    hub.breaks = [('refuse', 'POST commit')]
    lines.append(send(hub, tmp_path/'mine', tmp_path, subfolder='one'))
    assert hub.broken > first and there(hub) == {} and len(hub.lfs) == 1   # the bytes wait for a commit
    assert all(l.startswith('error: ') and len(l) < 400 for l in lines), lines
    hub.breaks, at = [], len(hub.requests)
    name = send(hub, tmp_path/'mine', tmp_path, subfolder='one')
    assert not [r for r in hub.requests[at:] if r[0] == 'PUT']             # they are not sent again
    assert {k.rpartition('/')[2]: v for k, v in there(hub).items() if k != 'README.md'} == files_of(tmp_path/'mine')
    assert send(hub, tmp_path/'mine', tmp_path, subfolder='one') == name
    print('interruptions hit:', hub.broken)

# -- Gemma Scope 2 beside ours -----------------------------------------------------------------------------------------
REAL = 'hf:google/gemma-scope-2-270m-pt/resid_post/layer_9_width_16k_l0_medium'

def test_gemma_scope_2_at_its_true_size(tmp_path):
    "640 × 16,384 in its layout, 84 MB: read back to the bit, laid beside a narrower SAE, saved by us and read again"
    there = tmp_path/'gemma-scope-2-270m-pt'/'resid_post'/'layer_9_width_16k_l0_medium'
    wide, ours = small_sae(640, 16_384, 1, hf_hook_name='model.layers.9.output'), small_sae(640, 64)
    write_gemma_scope(there, wide)
    assert 0 < (there/'params.safetensors').stat().st_size - 4*(2*640*16_384 + 2*16_384 + 640) < 1000   # the header
    back = interop.load_sae(there)
    x = torch.randn(64, 640, generator=torch.Generator().manual_seed(0))
    assert interop.site_said(back) == 'resid.9' and torch.equal(back.encode(x), wide.encode(x))
    m = interop.matches(ours.W_dec.data, back.W_dec.data)
    assert (m['ours']['n'], m['theirs']['n']) == (64, 16_384)
    for who in m.values(): assert abs(who['median'] - who['chance']) < .02 and who['above_07'] == 0   # both are random
    back.save(tmp_path/'again')
    assert torch.equal(interop.load_sae(tmp_path/'again').encode(x), back.encode(x))

@pytest.mark.skipif(
    os.environ.get('JUMPRELU_SAE_HUB') != '1',
    reason='set JUMPRELU_SAE_HUB=1 to ask the Hub (84 MB) and read the embedded model',
)
def test_the_real_gemma_scope_2(tmp_path):
    "On the embedded model, a 4-bit conversion of the one it was made for"
    from jumprelu_sae.activations import activations
    from jumprelu_sae.recipe import train_sae
    other = interop.load_sae(REAL)
    acts = activations('gemma3-270m', 'sotu', site='resid.9', n_train=16_384, n_val=1024, n_test=4096)
    c = interop.compare(train_sae('jumprelu', acts, d_sae=1024, l0=32), other, acts, n_lm=1024)
    print(interop.comparison_table(c))
    print(interop.check(other, acts))
    assert 20 < c['results'][1].metrics['l0'] < 180 and c['results'][1].metrics['fvu'] < .8
