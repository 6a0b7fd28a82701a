"""Fill an empty shop: python load_books.py"""

import asyncio
from pathlib import Path

from store import Book, Session, db


async def main():
    async with Session.begin() as session:
        for line in Path("books.csv").read_text().splitlines():
            isbn, title = line.split(",", 1)
            session.add(Book(isbn=isbn, title=title))
    await db.dispose()


asyncio.run(main())
