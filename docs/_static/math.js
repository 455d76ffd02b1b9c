// The equations of a page: Sphinx leaves TeX in <span class="math"> and <div class="math">, KaTeX draws it.
document.addEventListener('DOMContentLoaded', () => {
  for (const place of document.querySelectorAll('.math')) {
    const display = place.tagName === 'DIV';
    katex.render(place.textContent, place, {displayMode: display, throwOnError: false, strict: false});
  }
});
