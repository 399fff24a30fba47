for (const table of document.querySelectorAll('table.sortable')) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement('button');
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener('click', () => {
      const sorted = head.getAttribute('aria-sort');
      const text = head.classList.contains('text');
      const up = sorted ? sorted === 'descending' : text;
      const value = row => row.cells[column].dataset.value;
      const rows = [...body.rows].sort((a, b) =>
        (up ? 1 : -1) * (text ? value(a).localeCompare(value(b)) : value(a) - value(b)));
      heads.forEach(other => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      body.append(...rows);
    });
  });
}
