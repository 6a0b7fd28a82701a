"""Takes up messages whose process died before it answered: `python -m <package>.coordinator.recover`.

Run it every few minutes, as a scheduled job: a complaint must not be lost because its customer does
not send it twice. It may run anywhere, and at the same time as the service.
"""

import asyncio
import sys

from ..logging import configure_logging
from .agent_coordinator import AgentCoordinator


async def main() -> int:
    """Answer what can be answered, hand the rest to humans. Returns the exit status."""
    results, failed = await AgentCoordinator().recover()
    print(f"messages taken up: {len(results)}")
    if failed:
        print(f"failed, see the log: {', '.join(map(str, failed))}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    configure_logging()
    sys.exit(asyncio.run(main()))
