"""Takes up messages whose process died before it answered: `python -m <package>.coordinator.recover`.

Run it every few minutes, as a scheduled job: a complaint must not be lost because its customer does
not send it twice. It may run anywhere, and at the same time as the service.
"""

import asyncio

from .agent_coordinator import AgentCoordinator


async def main() -> None:
    """Answer what can be answered, hand the rest to humans."""
    results = await AgentCoordinator().recover()
    print(f"messages taken up: {len(results)}")


if __name__ == "__main__":
    asyncio.run(main())
