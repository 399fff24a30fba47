"""The table of what a dial can do, as several commands print it."""

from ..core.drnet import DRNet
from ..cost.costs import measure_costs
from ..cost.dial import Setting
from ..evaluate.budgets import Budget
from .output import Column, table


def budget_table(model: DRNet, budget: Budget) -> list[str]:
    """Lay out the positions of a dial, and below them the one that was chosen.

    Args:
        model: The DRNet whose dial it is.
        budget: What was found.

    Returns:
        The lines of the table.
    """
    largest = max(measure_costs(model).backbone)
    cascade = model.args.router == 'cascade'
    labelled = any(one.top1 is not None for one in budget.curve)
    columns = [
        Column('thresholds') if cascade else Column('cost weight', '.4f'), Column(budget.unit, '.4f'),
        Column('of largest', '.1f', '%'), *(Column(f'{r} px', '.1f', '%') for r in model.resolutions),
        *([Column('agreement', '.1f', '%')] if cascade else []),
        *([Column('top-1', '.2f', '%')] if labelled else []), Column('')]

    def row(one: Setting, remark: str = '') -> list[str | float | None]:
        dial = ', '.join('-' if t is None else f'{t:.4f}' for t in one.thresholds) if cascade else one.cost_weight
        return [
            dial, one.cost, 100 * one.cost / largest, *(100 * share for share in one.shares),
            *([one.agreement] if cascade else []), *([one.top1] if labelled else []), remark]

    rows = [row(one, 'as trained' if one.cost_weight == 0 and not cascade else '') for one in budget.curve]
    if budget.chosen is None:
        return table(columns, rows)
    assert budget.target is not None
    *lines, chosen = table(columns, [*rows, row(budget.chosen)])
    off = 100 * (budget.chosen.cost / budget.target - 1)
    return [*lines, '', f'for {budget.target:g} {budget.unit}, {off:+.2f} %:', chosen]
