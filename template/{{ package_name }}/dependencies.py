"""What routes ask for."""

from typing import Annotated

from fastapi import Depends
from sqlalchemy.ext.asyncio import AsyncSession

from .database import get_session

# The scope makes the commit happen before the response is sent, so a commit that fails is an error
# that the client sees.
SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]
