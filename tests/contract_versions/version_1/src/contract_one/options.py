from pydantic import BaseModel, ConfigDict, Field


class OneOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    colour: str = "red"
    size: int = Field(8, gt=0)
