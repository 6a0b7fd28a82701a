"""Settings in groups: DATABASE__HOST, DATABASE__PORT and so on."""

from pydantic import BaseModel
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import URL


class Database(BaseModel):
    host: str
    port: int = 5432
    user: str
    password: str
    name: str

    @property
    def url(self):
        return URL.create(
            "postgresql+asyncpg", self.user, self.password, self.host, self.port, self.name
        )


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_nested_delimiter="__")

    database: Database


settings = Settings()
