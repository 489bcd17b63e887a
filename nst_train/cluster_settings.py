"""Settings of work on a cluster: who does it. Imports no torch, and no Ray."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from nst_data.settings import Settings

_CLIENT_SCHEME = "ray://"


class ClusterSettings(Settings):
    """Who does the work: this process, or the workers of a Ray cluster; does not change the result."""

    panel: ClassVar[str] = "Execution (does not affect results)"

    engine: Literal["local", "ray"] = Field("local", description="ray: distribute the shards over the workers of a Ray cluster.")
    address: str = Field("auto", min_length=1, description="The Ray cluster, as HOST:PORT; auto: the one that this machine belongs to.")
    gpus_per_worker: float = Field(1, ge=0, le=64, description="GPUs per Ray worker; a fraction to share one, 0 for CPUs.")
    cpus_per_worker: int | None = Field(
        None, ge=1, description="CPUs per Ray worker, one thread each; by default an equal share of the node's CPUs."
    )
    workers: int | None = Field(None, ge=1, description="Maximum number of Ray workers; by default as many as fit on the nodes.")

    @model_validator(mode="after")
    def _check_ray_settings(self) -> Self:
        fields = ClusterSettings.model_fields
        ray_settings = [name for name in fields if name != "engine" and getattr(self, name) != fields[name].default]
        if ray_settings and self.engine != "ray":
            raise ValueError(f"`{ray_settings[0]}` applies to `engine` ray; add that, or remove it")
        if self.address.startswith(_CLIENT_SCHEME):
            raise ValueError(
                "`address`: expected HOST:PORT or auto, not a client's ray:// address; run the command on a machine of the cluster, "
                "such as by `ray job submit`"
            )
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            raise ValueError("`gpus_per_worker`: expected a whole number, or a fraction below 1")
        return self

    @property
    def cluster_options(self) -> dict[str, Any]:
        """Only these settings, by name."""
        return {name: getattr(self, name) for name in ClusterSettings.model_fields}
