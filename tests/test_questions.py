"The glossary's questions lead to sections that are there, and the tutorials are on a path"
import json, re
from pathlib import Path

NBS = Path(__file__).parent.parent/'nbs'
ROW = re.compile(r'^\| (.+?\?) \| \[(.+?)\]\((.+?)\), “(.+?)” \|$', re.M)


def markdown(path):
    "The markdown of a notebook in one string"
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return '\n\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')


def lost(rows, nbs):
    "Rows whose notebook or section is not there"
    out = []
    for question, name, link, heading in rows:
        path = nbs/link
        found = path.exists() and re.findall(r'^#+ +(.+?)\s*$', markdown(path), re.M)
        if not found or heading not in found or link != f'{name}.ipynb':
            out.append(question)
    return out


def test_every_question_has_its_section():
    rows = ROW.findall(markdown(NBS/'glossary.ipynb'))
    assert len(rows) == 12 and len({r[0] for r in rows}) == 12
    assert lost(rows, NBS) == []
    question, name, link, heading = rows[0]
    assert lost([(question, name, link, heading + ' again')], NBS) == [question]
    assert lost([(question, 'none', 'none.ipynb', heading)], NBS) == [question]


def test_every_tutorial_is_on_the_users_path_and_in_the_index():
    index, glossary = (markdown(NBS/f'{n}.ipynb') for n in ('index', 'glossary'))
    names = sorted(p.stem for p in (NBS/'tutorials').glob('*.ipynb'))
    assert {'first_sae', 'look_inside', 'saelens'} <= set(names)
    for n in names:
        assert f'(tutorials/{n}.ipynb)' in index and f'(tutorials/{n}.ipynb)' in glossary, n
        assert "User's path, stop" in markdown(NBS/f'tutorials/{n}.ipynb'), n
