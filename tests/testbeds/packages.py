"""The Debian packages of every test bed, so that one run of apt brings them all before tests wait for them."""

ARC = ("nordugrid-arc-arex", "nordugrid-arc-arcctl", "nordugrid-arc-arcctl-service", "openssl", "procps", "time")
AT = ("at", "util-linux")
APACHE = ("apache2-bin",)
CURL = ("curl",)
DEBOOTSTRAP = ("debootstrap",)
GFAL = ("gfal2", "gfal2-plugin-http", "gfal2-plugin-file", "python3-gfal2", "gfal2-util-scripts")
GRID_ENGINE = ("gridengine-master", "gridengine-exec", "gridengine-client", "gridengine-drmaa1.0", "libjemalloc2")
GRIDFTP = ("globus-gridftp-server-progs", "gfal2-plugin-gridftp", "gfal2-plugin-srm", "python3-gfal2")
HTCONDOR = ("minicondor",)
KERBEROS = ("krb5-kdc", "krb5-admin-server", "krb5-user")
LITMUS = ("litmus",)
MYPROXY = ("myproxy", "myproxy-server")
NAMESPACE = ("iproute2", "util-linux")
NGINX = ("nginx", "libnginx-mod-http-dav-ext")
PYTHON = ("python3",)
SLURM = (
    "slurmctld",
    "slurmd",
    "slurm-client",
    "slurm-wlm-basic-plugins",
    "slurm-wlm-jwt-plugin",
    "munge",
    "slurmrestd",
)
SLURM_DATABASE = ("slurmdbd", "slurm-wlm-mysql-plugin", "mariadb-server")
SSH = ("openssh-server", "openssh-client")
TAPE = ("xrootd-server", "xrootd-server-plugins")
VOMS = ("voms-clients", "globus-proxy-utils", "openssl")
XROOTD = (*TAPE, "xrootd-client", "xrootd-scitokens-plugins")

# In the next Debian's chroot.
TRIXIE = tuple(dict.fromkeys((*ARC, *HTCONDOR, *PYTHON, *SLURM)))
# On this machine.
DEBIAN = tuple(
    dict.fromkeys(
        (
            *ARC,
            *AT,
            *APACHE,
            *CURL,
            *DEBOOTSTRAP,
            *GFAL,
            *GRID_ENGINE,
            *GRIDFTP,
            *KERBEROS,
            *LITMUS,
            *MYPROXY,
            *NAMESPACE,
            *NGINX,
            *SLURM,
            *SLURM_DATABASE,
            *SSH,
            *VOMS,
            *XROOTD,
        )
    )
)
