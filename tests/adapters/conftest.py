"""The contract suites are plain modules; pytest shall explain their assertions, too."""

import pytest

pytest.register_assert_rewrite(
    "contract_journal", "contract_blobs", "contract_registry", "contract_lease", "contract_cluster"
)
