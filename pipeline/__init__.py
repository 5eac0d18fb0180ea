"""Science, decisions and data of farwalk. Never imports parsl, apps or site_configs.

The map, bottom-up: a module imports only from modules above itself.

=====================  ==========================================================================================
``errors``             the error tree: message and remedy
``units``, ``seeds``   ASE units inside; seeds that depend on what a task is, never on when it ran
``settings``           the campaign file as frozen pydantic models
``frames``             one structure
``ranks``              who shares a task: one process, or MPI ranks
``records``            everything that crosses a process border
``durable``            files that are there as a whole or not at all
``node``               the machine a task happens to run on
``columns``            HDF5 groups of frames and ragged arrays
``shards``             immutable files of labels, candidates and walkers
``neighbors``          who is near whom, by vesin or by torch on any device
``batching``           many structures as one flat batch with neighbour rows
``moving``             moving structures whose neighbour rows are reused
``uncertainty``        posterior, distance, committee; conformal calibration
``potentials``         the contract, GM-NN, model files, the ASE calculator
``bias``               forces of E − τ s u
``strength``           the controller of s
``dynamics``             walkers in batches on a device: Langevin, barostat, hills, stop checks, refill
``references``         what labels: CP2K, Quantum ESPRESSO, ASE, OpenMM; how a failed label is tried again
``analysis``           coverage, errors, collective variables, held-out sets
``structures``         start structures, read and checked
``initial``            the first frames to label
``intake``             campaign file and structures together, or one error with all that is wrong
``selection``          which candidates are worth a label
``training``           loss, trainer, calibration
``label_directory``    what a label task keeps: its result, its tries, its failure
``workspace``          where a try of a label runs, and what is kept of its files
``together``           a task carried out by several MPI ranks, seen from its worker
``walk``               the walk task: one record in, one record out
``label``              the label task
``select``             the select task
``train``              the train task
``mpi``                the program of each rank
``events``             facts, one dataclass each
``event_log``          the append-only log of events
``requests``           what can be asked for: a task that is not made yet
``rows``               sequences that grow and never change
``flow``               what is under way in a streaming campaign
``state``              what is known at one moment
``fold``               what is known, from the events
``faults``             when labelling must pause
``decisions``          tasks to hand out, labels to gather, or the end
``plan``               how much of everything: batches, picks, conditions, shares
``ending``             when a campaign is over
``rounds``             the schedule with a barrier
``streaming``          the schedule without
``policy``             what to do next: a pure function of what is known
``losses``             what becomes of a task without a result
``estimate``           what a campaign will take
``sessions``           when drivers ran
``utilisation``        how much of their time workers had something to do
``pace``               what a campaign spends, and how fast
``forecast``           when a campaign will be over
``splits``             what a label is used for
``lock``, ``store``    one driver; where its files are
``level``              what may have changed the level of theory
``energy_window``      which energies are plausible
``guesses``            restart files of labels
``quarantine``         labels that failed for good, and how they are tried again
``tasks``              from a request to a task
``recording``          from results to files and events
``ledger``             what a driver writes and reads
``clock``              the time it lives in
``idling``             how long workers had nothing to do, and why
``steps``, ``inline``  who carries tasks out
``trial``              a campaign in small: what `farwalk check` runs
``scan``               one key of the reference and the values to compare
``convergence``        errors of labels against the finest value of a scan
``driver``             the loop
``campaign``           a campaign directory, made or taken up, and run
``simulation``         a campaign by a virtual clock, before anyone pays for it
``export``             labels or the model as one file
``monitor``            tables and figures from a campaign directory
=====================  ==========================================================================================
"""

from importlib.metadata import version

__version__ = version("farwalk")
