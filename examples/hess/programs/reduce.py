#!/usr/bin/env python3
"""Reduce one observation run to a spectrum with background and to a sky map.

    python reduce.py RUN_FILE RA DEC        (target position, degrees)

writes pha_obs<run>.fits and map_obs<run>.fits.gz into the current directory.
"""

import argparse

import astropy.units as u
from astropy.coordinates import SkyCoord
from gammapy.data import Observation
from gammapy.datasets import MapDataset, SpectrumDataset
from gammapy.makers import (
    MapDatasetMaker,
    ReflectedRegionsBackgroundMaker,
    SafeMaskMaker,
    SpectrumDatasetMaker,
)
from gammapy.maps import MapAxis, RegionGeom, WcsGeom
from regions import CircleSkyRegion


def write(dataset: MapDataset, filename: str) -> None:
    """Write with checksums, and with the cards that say which run of which data this came from."""
    hdus = dataset.to_hdulist()
    cards = observation.events.table.meta
    for key in ("TELESCOP", "INSTRUME", "ORIGIN", "OBS_ID", "OBJECT", "DATE-OBS"):
        hdus["PRIMARY"].header[key] = cards[key]
    hdus.writeto(filename, checksum=True, overwrite=True)


parser = argparse.ArgumentParser()
parser.add_argument("run_file", help="events and responses of the run, GADF DL3")
parser.add_argument("ra", type=float, help="right ascension of the target, degrees")
parser.add_argument("dec", type=float, help="declination of the target, degrees")
args = parser.parse_args()

observation = Observation.read(args.run_file)
run = observation.obs_id
target = SkyCoord(args.ra, args.dec, unit="deg")

energy = MapAxis.from_energy_bounds("0.1 TeV", "40 TeV", nbin=10, per_decade=True)
true_energy = MapAxis.from_energy_bounds("0.05 TeV", "100 TeV", nbin=20, per_decade=True, name="energy_true")

# Spectrum: counts in a circle around the target, background from reflected regions of the same run.
on_region = RegionGeom.create(CircleSkyRegion(target, 0.11 * u.deg), axes=[energy])
empty = SpectrumDataset.create(on_region, energy_axis_true=true_energy, name=str(run))
maker = SpectrumDatasetMaker(selection=["counts", "exposure", "edisp"], containment_correction=True)
spectrum = ReflectedRegionsBackgroundMaker().run(maker.run(empty, observation), observation)
spectrum = SafeMaskMaker(methods=["aeff-max"], aeff_percent=10).run(spectrum, observation)
write(spectrum, f"pha_obs{run}.fits")
print(f"run {run}: {spectrum.counts.data.sum():.0f} ON, {spectrum.counts_off.data.sum():.0f} OFF counts")

# Sky map: counts, and the background expected from the run's background model.
sky = WcsGeom.create(skydir=target, width="3 deg", binsz=0.04, axes=[energy])
empty = MapDataset.create(sky, name=str(run))
sky_map = MapDatasetMaker(selection=["counts", "background"]).run(empty, observation)
sky_map = SafeMaskMaker(methods=["offset-max"], offset_max="2 deg").run(sky_map, observation)
write(sky_map, f"map_obs{run}.fits.gz")
