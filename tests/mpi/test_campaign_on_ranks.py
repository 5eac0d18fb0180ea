"""A campaign whose training and selection two ranks share."""

from pathlib import Path

import small_campaign

from pipeline.events import EndReason
from pipeline.store import Store


def test_a_campaign_spends_its_budget_with_two_ranks_and_leaves_nothing_behind(tmp_path, launch):
    settings = small_campaign.settings()
    settings = settings.model_copy(
        update={
            "labels": settings.labels.model_copy(update={"budget": 12}),
            "site": settings.site.model_copy(update={"train_ranks": 2, "launch": launch}),
        }
    )
    outcome = small_campaign.run(tmp_path / "campaign", settings)
    state = Store(tmp_path / "campaign").state()
    assert outcome.reason is EndReason.BUDGET
    assert len(state.models) == 2
    ranks = [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"pipeline.mpi" in _bytes(path)]
    assert not [path for path in ranks if str(tmp_path).encode() in _bytes(path)]
    assert not list((tmp_path / "campaign").glob("**/ranks-*"))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
