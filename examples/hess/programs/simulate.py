#!/usr/bin/env python3
"""Simulate runs on a Crab-like source, for whoever has no real ones at hand.

    python simulate.py FOLDER [RUNS]

writes data/simulated_obs_id_<run>.fits.gz and the two index files, laid out like the H.E.S.S. test data.
The responses are formulas of about the right size, not those of any telescope; the source is a power law
of index 2.6, 4e-11 /cm2/s/TeV at 1 TeV. The same version of gammapy gives the same events every time.
"""

import argparse
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.coordinates import EarthLocation, SkyCoord
from astropy.io import fits
from astropy.table import Table
from astropy.time import Time
from astropy.utils.iers import conf as iers_conf
from gammapy.data import FixedPointingInfo, Observation
from gammapy.datasets import ObservationEventSampler
from gammapy.irf import IRF, PSF3D, Background2D, EffectiveAreaTable2D, EnergyDispersion2D
from gammapy.maps import MapAxis
from gammapy.modeling.models import PointSpatialModel, PowerLawSpectralModel, SkyModel

iers_conf.auto_download = False  # the tables that come with astropy do

SEED, FIRST_RUN = 20260101, 900001
CRAB = SkyCoord(83.633, 22.014, unit="deg")
POINTINGS = [(0, -0.5), (0, 0.5), (-0.5, 0), (0.5, 0)]  # degrees from the source, by turns
FIRST_START = Time("2024-01-10T20:00:00", scale="tt")
DURATION, SPACING, DEAD_FRACTION = 28 * u.min, 30 * u.min, 0.06

GADF = {
    "HDUCLASS": "GADF",
    "HDUDOC": "https://github.com/open-gamma-ray-astro/gamma-astro-data-formats",
    "HDUVERS": "0.2",
}
CLOCK = {"MJDREFI": 51910, "MJDREFF": 0.00074287037037, "TIMEUNIT": "s", "TIMESYS": "TT", "TIMEREF": "LOCAL"}
EPOCH = Time(CLOCK["MJDREFI"], CLOCK["MJDREFF"], format="mjd", scale="tt")
PLACE = {"GEOLON": 16.5002, "GEOLAT": -23.2718, "ALTITUDE": 1835.0}
LABELS = {
    "TELESCOP": "Simulated",
    "INSTRUME": "H.E.S.S.-like, simulated",
    "ORIGIN": "Simulated with gammapy",
    "OBJECT": "Crab Nebula (simulated)",
    "SIMULATD": True,
}
TIMES = ("TSTART", "TSTOP", "ONTIME", "LIVETIME", "DEADC")
DIRECTIONS = ("RA_PNT", "DEC_PNT", "ALT_PNT", "AZ_PNT", "RA_OBJ", "DEC_OBJ")
HDU_CLASSES = {
    "events": "events",
    "gti": "gti",
    "aeff": "aeff_2d",
    "edisp": "edisp_2d",
    "psf": "psf_table",
    "bkg": "bkg_2d",
}


def responses() -> dict[str, IRF]:
    """Effective area, energy dispersion, point spread and background as functions of energy and offset."""
    energy = MapAxis.from_energy_bounds("0.1 TeV", "50 TeV", 10, per_decade=True)
    true_energy = MapAxis.from_energy_bounds("0.05 TeV", "100 TeV", 20, per_decade=True, name="energy_true")
    offset = MapAxis.from_edges([0, 0.5, 1, 1.5, 2, 2.5], unit="deg", name="offset")
    migration = MapAxis.from_bounds(0.2, 2, nbin=90, name="migra")
    radius = MapAxis.from_bounds(0, 0.4, nbin=80, unit="deg", name="rad")

    tev = energy.center.to_value("TeV")[:, np.newaxis]
    acceptance = np.exp(-0.5 * (offset.center.value / 1.7) ** 2)
    on_axis = EffectiveAreaTable2D.from_parametrization(true_energy, "HESS").quantity.to_value("m2")
    rate = 4e-4 * tev**-2.7 * np.exp(-0.5 / tev) * acceptance**2
    spread = np.tile(np.exp(-0.5 * (radius.center.value / 0.06) ** 2), (true_energy.nbin, offset.nbin, 1))
    psf = PSF3D([true_energy, offset, radius], data=spread, unit="sr-1")
    psf.normalize()
    return {
        "aeff": EffectiveAreaTable2D([true_energy, offset], data=on_axis * acceptance, unit="m2", meta=LABELS),
        "edisp": EnergyDispersion2D.from_gauss(true_energy, migration, offset, bias=0, sigma=0.15),
        "psf": psf,
        "bkg": Background2D([energy, offset], data=rate, unit="s-1 MeV-1 sr-1"),
    }


def draw_events(number: int, irfs: dict[str, IRF]) -> Table:
    """Draw the events that one run of the given responses would record; the run's facts are in its meta."""
    east, north = POINTINGS[number % len(POINTINGS)] * u.deg
    start = FIRST_START + number * SPACING
    observation = Observation.create(
        FixedPointingInfo(fixed_icrs=CRAB.spherical_offsets_by(east, north)),
        location=EarthLocation.from_geodetic(*PLACE.values()),
        tstart=start,
        tstop=start + DURATION,
        irfs=irfs,
        deadtime_fraction=DEAD_FRACTION,
        reference_time=EPOCH,
    )
    law = PowerLawSpectralModel(index=2.6, amplitude="4e-11 cm-2 s-1 TeV-1", reference="1 TeV")
    source = SkyModel(law, PointSpatialModel(lon_0=CRAB.ra, lat_0=CRAB.dec, frame="icrs"), name="source")
    grid = {"spatial_width": 5 * u.deg, "spatial_bin_size": 0.03 * u.deg}
    sampler = ObservationEventSampler(random_state=SEED + number, dataset_kwargs=grid, keep_mc_id=False)
    drawn = sampler.run(observation, [source]).events.table

    events = drawn["EVENT_ID", "RA", "DEC", "ENERGY"]
    events.add_column((drawn["TIME"] - EPOCH).to("s"), name="TIME", index=1)
    events.meta = {"OBS_ID": FIRST_RUN + number, "OBS_MODE": "WOBBLE"} | LABELS
    events.meta |= {key: drawn.meta[key] for key in TIMES + DIRECTIONS}
    events.meta["DATE-OBS"], events.meta["TIME-OBS"] = start.isot.split("T")
    events.meta["DATE-END"], events.meta["TIME-END"] = (start + DURATION).isot.split("T")
    return events


def lay_out(events: Table, irfs: dict[str, IRF]) -> fits.HDUList:
    """Bring events and responses into the form of a DL3 file."""
    gti = Table([[events.meta["TSTART"]] * u.s, [events.meta["TSTOP"]] * u.s], names=["START", "STOP"])
    hdus = fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(events, name="EVENTS"), fits.BinTableHDU(gti, name="GTI")])
    hdus["PRIMARY"].header["COMMENT"] = "Simulated with gammapy for a demonstration. This is no observation."
    hdus["EVENTS"].header.update(GADF | CLOCK | PLACE | {"HDUCLAS1": "EVENTS", "EUNIT": "TeV", "RADESYS": "ICRS"})
    hdus["GTI"].header.update(GADF | CLOCK | LABELS | {"HDUCLAS1": "GTI"})
    for kind, irf in irfs.items():
        hdus.append(irf.to_table_hdu())
        hdus[-1].name = kind.upper()
    return hdus


def write_index(table: Table, path: Path, kind: str) -> None:
    """Write one of the two index files that make a folder of runs a data store."""
    hdu = fits.BinTableHDU(table, name=f"{kind}_INDEX")
    hdu.header.update(GADF | CLOCK | PLACE | {"HDUCLAS1": "INDEX", "HDUCLAS2": kind})
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path, checksum=True, overwrite=True)


parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path, help="where to write; made if need be")
parser.add_argument("runs", type=int, nargs="?", default=4, help="how many runs (default 4)")
args = parser.parse_args()

(args.folder / "data").mkdir(parents=True, exist_ok=True)
irfs = responses()
obs_rows, hdu_rows = [], []
for number in range(args.runs):
    events = draw_events(number, irfs)
    run = events.meta["OBS_ID"]
    name = f"simulated_obs_id_{run:06d}.fits.gz"
    hdus = lay_out(events, irfs)
    hdus.writeto(args.folder / "data" / name, checksum=True, overwrite=True)
    obs_rows.append(events.meta | {"EVENT_COUNT": len(events)})
    for hdu_type, hdu_class in HDU_CLASSES.items():
        hdu_rows.append([run, hdu_type, hdu_class, "data", name, hdu_type, hdus[hdu_type].filebytes()])
    print(f"{name}: {len(events)} events")
write_index(Table(rows=obs_rows), args.folder / "obs-index.fits.gz", "OBS")
columns = ["OBS_ID", "HDU_TYPE", "HDU_CLASS", "FILE_DIR", "FILE_NAME", "HDU_NAME", "SIZE"]
write_index(Table(rows=hdu_rows, names=columns), args.folder / "hdu-index.fits.gz", "HDU")
