from redis.asyncio.client import Redis

__all__ = ["Redis"]
