from functools import cache

from pydantic import PostgresDsn
from pydantic_settings import BaseSettings


class Settings(BaseSettings):
    clinic_dsn: PostgresDsn


@cache
def get_settings():
    return Settings()
