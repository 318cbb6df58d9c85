"""cluster: what makes, starts and shows the devices of several hosts, and what they would be good for."""

from __future__ import annotations

from invoke.context import Context

from deberta import PROJECT
from deberta.core import contract, progress
from deberta.core.errors import ConfigError
from deberta.host.cli import output, settings
from deberta.host.cli.command import command
from deberta.host.cli.options import OPTIONS, Options
from deberta.host.cluster import capacity, cluster_settings
from deberta.host.cluster.cluster_settings import ClusterSettings
from deberta.host.environments import cluster as environment

USED = {
    "certs": ("hosts", "days"),
    "scheduler": (),
    "worker": ("device", "backend", "executor", "msame", "listen", "keep"),
    "show": ("json",),
    "job": ("hosts", "device", "kubernetes", "volcano", "image", "counts"),
    "plan": (
        *("profile", "sizes", "loops", "counts", "per_host", "fps", "compile_seconds", "start_seconds", "ship_mb"),
        *("lost", "shared", "json"),
    ),
}


@command(
    *("action", "cluster", "hosts", "days", "listen", "kubernetes", "volcano", "image", "counts"),
    *("profile", "sizes", "loops", "per_host", "fps", "compile_seconds", "start_seconds", "ship_mb", "lost", "shared"),
    *("backend", "device", "msame", "executor", "keep", "json"),
)
def cluster(c: Context, options: Options) -> None:
    """Share runs out to several hosts: what that needs and starts.

    certs makes a CA and each host's certificate, job prints what starts workers, plan says how long acceptances take.
    """
    _refuse_unused(options)
    if options.action == "plan":
        plan = _plan(c, options)
        output.show(options, plan, capacity.text(plan))
        return
    name, own = _cluster(c, options)
    if options.action == "job":
        print(_job(name, own, options))
        return
    environment.enter(PROJECT, settings.wheelhouse(c))
    if options.action == "certs":
        _make_certificates(own, options)
    elif options.action == "scheduler":
        _run_scheduler(own)
    elif options.action == "worker":
        _run_workers(c, own, options)
    elif options.action == "show":
        from deberta.host.cluster import certificates, show

        checked = certificates.of_cluster(own, PROJECT)
        document = show.look(own.scheduler, checked)
        output.show(options, document, show.text(document))


def _refuse_unused(options: Options) -> None:
    """Raise ConfigError for an option that the action does not take."""
    known = {OPTIONS[field].name for field in ("action", "cluster", *USED[options.action])}
    if unused := sorted(set(options.typed) - known):
        raise ConfigError(f"cluster {options.action} takes no --{unused[0]}. See: invoke --help cluster")


def _cluster(c: Context, options: Options) -> tuple[str, ClusterSettings]:
    """The cluster of --cluster, or the only one of the settings. Raises ConfigError."""
    known = settings.read(c).clusters
    names = list(known) if isinstance(known, dict) else []
    if not options.cluster and len(names) > 1:
        raise ConfigError(f"--cluster is needed: {', '.join(sorted(names))}")
    name = options.cluster or (names[0] if names else "lab")
    return name, cluster_settings.load(known, name)


def _plan(c: Context, options: Options) -> capacity.CapacityDocument:
    """How long an acceptance takes, in seconds, by the figures of this workspace, the options and the settings."""
    values, profile = settings.read(c), settings.profile_of(c, options.profile)
    sizes, loops = options.sizes or sorted(set(values.batch_sizes)), options.loops or contract.PERFORMANCE_LOOPS
    work = capacity.workload(settings.workspace(c), profile, sizes, loops, options.fps, options.compile_seconds)
    costs = capacity.Costs(
        start_seconds=options.start_seconds,
        shards=settings.shard_settings(c, options.cluster),
        ship_mb=options.ship_mb,
        per_host=options.per_host,
        lost=options.lost,
        shared=options.shared,
    )
    return capacity.document(profile.name, work, costs, options.counts or capacity.DEVICES)


def _hosts(options: Options, what: str) -> list[str]:
    """Those of --host. Raises ConfigError if there is none."""
    if hosts := [host for host in options.hosts.split(",") if host]:
        return hosts
    raise ConfigError(f"--host is needed: {what}")


def _make_certificates(own: ClusterSettings, options: Options) -> None:
    from deberta.host.cluster import certificates

    hosts = _hosts(options, "the names or addresses of the cluster's hosts, commas between")
    folder = cluster_settings.certificates_folder(own, PROJECT)
    place = folder.parent / f"{folder.name}-ca"
    made = certificates.make(place, hosts, options.days)
    for path in made:
        progress.say(f"{path.name}: copy {path} to that host, as {folder}; then remove it here")
    progress.say(f"{place / certificates.CA_KEY} is needed for new hosts alone: keep it where no worker runs")
    print(*made, sep="\n")


def _run_scheduler(own: ClusterSettings) -> None:
    from deberta.host.cluster import certificates, processes

    host, port = own.endpoint
    checked = certificates.of_cluster(own, PROJECT)
    processes.run_scheduler(host, port, checked, progress.say)


def _run_workers(c: Context, own: ClusterSettings, options: Options) -> None:
    from deberta.host.cluster import certificates, processes

    checked = certificates.of_cluster(own, PROJECT)
    plan = settings.plan_of(c, options, devices="several")
    processes.run_workers(
        processes.WorkerPlan(
            scheduler=own.scheduler,
            listen=cluster_settings.own_address(own.endpoint, options.listen),
            certificates=checked,
            folder=cluster_settings.worker_folder(own, PROJECT),
            tool=plan.tool,
            session=lambda folder: settings.session_of(c, options, folder=folder),
            say=progress.say,
        ),
        plan.devices,
    )


def _job(name: str, own: ClusterSettings, options: Options) -> str:
    from deberta.host.cluster import job

    counts = options.counts or (1,)
    if len(counts) > 1:
        raise ConfigError("--devices of a Job is one number")
    if options.kubernetes:
        return job.kubernetes(name, own.scheduler, options.image, counts[0], options.volcano)
    hosts = _hosts(options, "where to start workers by ssh; or --kubernetes for an Indexed Job")
    devices = "all" if not options.device or isinstance(options.device, str) else ",".join(map(str, options.device))
    return "\n".join(job.ssh_lines(name, hosts, str(PROJECT), devices))
